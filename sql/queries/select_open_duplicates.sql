-- List users with late duplicates that Redis was not corrected for, and the score they are due.
-- Index: rejected_events_open, then users_pk and scores_pk
SELECT u.external_id, s.score
FROM (
    SELECT DISTINCT user_id FROM rejected_events
    WHERE board = %(board)s AND part = %(part)s
      AND corrected_at IS NULL AND reason = 'late_duplicate'
    ORDER BY user_id LIMIT %(limit)s
) late
JOIN users u ON u.id = late.user_id
JOIN scores s ON s.board = %(board)s AND s.user_id = late.user_id
