-- Read and lock a dead letter, so that no other transaction resolves it.
-- Index: dead_events_id_key
SELECT id, part, stream_id, raw, reason, recorded_at, resolution FROM dead_events
WHERE board = %(board)s AND id = %(id)s
FOR UPDATE
