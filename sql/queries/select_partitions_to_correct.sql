-- List the partitions that have users whose score in Redis was not corrected yet.
-- Index: rejected_events_due, one access for each partition
WITH RECURSIVE due AS (
    (
        SELECT board, part FROM rejected_events
        WHERE corrected_at IS NULL AND reason <> 'correction'
        ORDER BY board, part LIMIT 1
    )
    UNION ALL
    SELECT following.board, following.part
    FROM due CROSS JOIN LATERAL (
        SELECT board, part FROM rejected_events
        WHERE corrected_at IS NULL AND reason <> 'correction'
            AND (board, part) > (due.board, due.part)
        ORDER BY board, part LIMIT 1
    ) following
)
SELECT board, part FROM due LIMIT %(limit)s
