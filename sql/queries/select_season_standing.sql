-- Read the frozen standing of a user in a season.
-- Index: users_external_id_key, season_standings_user
SELECT t.rank, t.score FROM season_standings t
WHERE t.board = %(board)s AND t.season = %(season)s
  AND t.user_id = (SELECT id FROM users WHERE external_id = %(user_id)s)
