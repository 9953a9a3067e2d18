-- List what of a partition is parked and still owed, oldest first.
-- Index: dead_events_pk
SELECT stream_id, raw FROM dead_events
WHERE board = %(board)s AND part = %(part)s AND resolved_at IS NULL
ORDER BY recorded_at
LIMIT %(limit)s
