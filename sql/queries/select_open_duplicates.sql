-- List users whose score in Redis was not corrected yet.
-- Index: rejected_events_due, then users_pk
SELECT u.external_id
FROM (
    SELECT DISTINCT user_id FROM rejected_events
    WHERE board = %(board)s AND part = %(part)s
      AND corrected_at IS NULL AND reason <> 'correction'
    ORDER BY user_id LIMIT %(limit)s
) late
JOIN users u ON u.id = late.user_id
