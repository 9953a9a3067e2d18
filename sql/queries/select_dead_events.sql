-- List the unresolved dead letters of a board, oldest first.
-- Index: dead_events_open
SELECT id, part, stream_id, raw, reason, recorded_at FROM dead_events
WHERE board = %(board)s AND resolved_at IS NULL AND id > %(after)s
ORDER BY id
LIMIT %(limit)s
