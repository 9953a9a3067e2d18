-- Begin a new epoch of a partition: a flusher of the old epoch can no longer commit.
-- Index: flush_state_pk
INSERT INTO flush_state AS f (board, part, epoch, seq, stream_id, season)
VALUES (%(board)s, %(part)s, %(epoch)s, %(seq)s, %(stream_id)s, %(season)s)
ON CONFLICT (board, part) DO UPDATE
SET epoch = excluded.epoch, seq = excluded.seq, stream_id = excluded.stream_id,
    season = excluded.season
WHERE f.epoch < excluded.epoch
