-- Move a partition's position forward, never back.
-- Index: flush_state_pk
UPDATE flush_state SET seq = %(seq)s, stream_id = %(stream_id)s
WHERE board = %(board)s AND part = %(part)s AND seq < %(seq)s
