-- Export what was kept of a user's actions on boards whose ledger is detached.
-- Index: users_external_id_key, then score_sums_pk for each board
SELECT s.board AS "board",
       nullif(s.season, '') AS "season",
       s.delta AS "delta",
       s.actions AS "actions"
FROM users u JOIN score_sums s ON s.user_id = u.id
WHERE u.external_id = %(user)s
ORDER BY s.board, s.season
