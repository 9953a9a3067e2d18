-- Export the boards from which a user is banned now.
-- Index: users_external_id_key, then bans_pk for each board
SELECT b.board AS "board",
       b.act_id AS "actId"
FROM users u JOIN bans b ON b.user_id = u.id
WHERE u.external_id = %(user)s
ORDER BY b.board
