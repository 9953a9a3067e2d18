-- Read one parked entry, and let nobody else resolve it before this transaction ends.
-- Index: dead_events_id_key
SELECT id, part, stream_id, raw, reason, recorded_at, resolution FROM dead_events
WHERE board = %(board)s AND id = %(id)s
FOR UPDATE
