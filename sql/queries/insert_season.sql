-- Record a season of a board; an existing one is unchanged.
-- Index: seasons_pk
INSERT INTO seasons (board, season, starts_at, ends_at)
VALUES (%(board)s, %(season)s, to_timestamp(%(start_s)s), to_timestamp(%(end_s)s))
ON CONFLICT DO NOTHING
