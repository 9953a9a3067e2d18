-- Export the final standings of a season.
-- Index: season_standings_pk, users_pk, scores_pk; for operators, never for requests
SELECT t.rank AS "rank",
       u.external_id AS "userId",
       t.score AS "score",
       s.reached_at AS "reachedAt"
FROM season_standings t JOIN users u ON u.id = t.user_id
LEFT JOIN scores s ON s.board = %(scores)s AND s.user_id = t.user_id
WHERE t.board = %(board)s AND t.season = %(season)s
ORDER BY t.rank
