-- Read a partition's committed position and block commits until this transaction ends.
-- Index: flush_state_pk
SELECT epoch, seq, stream_id, season FROM flush_state WHERE board = %(board)s AND part = %(part)s FOR SHARE
