-- Export the scores of a user on every board, and in every season.
-- Index: users_external_id_key, then scores_pk for each board and season
-- The scores of a season have a row of their own in boards, which names its board.
SELECT coalesce(k.season_of, k.board) AS "board",
       substr(s.board, length(k.season_of) + 2) AS "season",
       s.score AS "score",
       s.actions AS "actions",
       s.reached_at AS "reachedAt"
FROM users u JOIN scores s ON s.user_id = u.id JOIN boards k ON k.board = s.board
WHERE u.external_id = %(user)s
ORDER BY 1, 2
