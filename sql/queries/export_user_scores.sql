-- Export the scores of a user.
-- Index: users_external_id_key, then scores_pk for each board
SELECT s.board AS "board",
       s.score AS "score",
       s.actions AS "actions",
       s.reached_at AS "reachedAt"
FROM users u JOIN scores s ON s.user_id = u.id
WHERE u.external_id = %(user)s
ORDER BY 1
