-- Read how far a partition is committed, and let no other flusher commit until this transaction ends.
-- Index: flush_state_pk
SELECT epoch, seq, stream_id FROM flush_state WHERE board = %(board)s AND part = %(part)s FOR UPDATE
