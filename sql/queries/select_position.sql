-- Read how far a partition's stream is committed.
-- Index: flush_state_pk
SELECT epoch, seq, stream_id, season FROM flush_state WHERE board = %(board)s AND part = %(part)s
