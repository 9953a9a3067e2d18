-- Record a season of a board and the name of its scores; a repeat changes nothing.
-- Index: boards_pk, seasons_pk
SELECT open_season(%(board)s, %(season)s, %(start_s)s::BIGINT, %(end_s)s::BIGINT)
