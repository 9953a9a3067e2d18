-- Read a page of the frozen standings of a season.
-- Index: season_standings_pk, users_pk
SELECT t.rank, u.external_id, t.score
FROM season_standings t JOIN users u ON u.id = t.user_id
WHERE t.board = %(board)s AND t.season = %(season)s AND t.rank > %(offset)s
ORDER BY t.rank
LIMIT %(limit)s
