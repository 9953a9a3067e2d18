-- Read whether the standings of a season are frozen, the number of its users if they are, and of their revisions.
-- Index: seasons_pk, season_standings_pk
SELECT s.frozen_at IS NOT NULL,
       coalesce((SELECT max(t.rank) FROM season_standings t WHERE t.board = s.board AND t.season = s.season), 0),
       s.revisions
FROM seasons s WHERE s.board = %(board)s AND s.season = %(season)s
