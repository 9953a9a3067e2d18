-- List seasons of a board, latest first, before one if it is given, with the number of users of frozen ones and their first three.
-- Index: seasons_start, season_standings_pk, users_pk
SELECT s.season, s.starts_at, s.ends_at, s.frozen_at IS NOT NULL,
       coalesce((SELECT max(t.rank) FROM season_standings t WHERE t.board = s.board AND t.season = s.season), 0),
       ARRAY(
           SELECT u.external_id FROM season_standings t JOIN users u ON u.id = t.user_id
           WHERE t.board = s.board AND t.season = s.season AND t.rank <= 3 ORDER BY t.rank
       ),
       ARRAY(
           SELECT t.score FROM season_standings t
           WHERE t.board = s.board AND t.season = s.season AND t.rank <= 3 ORDER BY t.rank
       ),
       s.revised_at
FROM seasons s
WHERE s.board = %(board)s
  AND (%(before)s::TEXT IS NULL
       OR s.starts_at < (SELECT b.starts_at FROM seasons b WHERE b.board = %(board)s AND b.season = %(before)s))
ORDER BY s.starts_at DESC
LIMIT %(limit)s
