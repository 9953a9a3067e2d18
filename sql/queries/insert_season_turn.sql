-- Record that a partition began a season; a repeat changes nothing.
-- Index: season_turns_pk
INSERT INTO season_turns (board, part, epoch, seq, season)
VALUES (%(board)s, %(part)s, %(epoch)s, %(seq)s, %(season)s)
ON CONFLICT DO NOTHING
