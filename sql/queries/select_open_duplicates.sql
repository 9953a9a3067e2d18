-- List users whose score in Redis was not set right yet, and the score they are due (NULL: none).
-- Index: rejected_events_due, then users_pk and scores_pk
SELECT u.external_id, s.score
FROM (
    SELECT DISTINCT user_id FROM rejected_events
    WHERE board = %(board)s AND part = %(part)s
      AND corrected_at IS NULL AND reason <> 'correction'
    ORDER BY user_id LIMIT %(limit)s
) late
JOIN users u ON u.id = late.user_id
LEFT JOIN scores s ON s.board = %(board)s AND s.user_id = late.user_id
