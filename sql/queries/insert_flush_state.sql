-- Insert the position of a partition; an existing one is unchanged.
-- Index: flush_state_pk
INSERT INTO flush_state (board, part, epoch, seq, stream_id)
VALUES (%(board)s, %(part)s, %(epoch)s, 0, '0-0')
ON CONFLICT DO NOTHING
