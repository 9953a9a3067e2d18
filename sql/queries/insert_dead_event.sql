-- Insert a dead letter, in the transaction that moves past the entry.
-- Index: dead_events_pk
INSERT INTO dead_events (board, part, stream_id, raw_hash, raw, reason, seq)
VALUES (%(board)s, %(part)s, %(stream_id)s, %(raw_hash)s, %(raw)s, %(reason)s, %(seq)s)
ON CONFLICT DO NOTHING
