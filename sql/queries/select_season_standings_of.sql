-- Read the frozen standings of some users in a season, best first.
-- Index: users_external_id_key, season_standings_user
SELECT t.rank, u.external_id, t.score
FROM users u JOIN season_standings t ON t.user_id = u.id
WHERE u.external_id = ANY(%(users)s) AND t.board = %(board)s AND t.season = %(season)s
ORDER BY t.rank
