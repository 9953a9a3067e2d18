-- List the resolved dead letters of a board, newest first.
-- Index: none, a handful of rows
SELECT id, part, stream_id, raw, reason, recorded_at, resolution, resolved_at, resolved_by,
       resolved_reason
FROM dead_events
WHERE board = %(board)s AND resolved_at IS NOT NULL
ORDER BY resolved_at DESC, id
LIMIT %(limit)s
