-- List those of some users that are banned on a board, with the act of each ban.
-- Index: users_external_id_key, bans_pk
SELECT u.external_id, b.act_id
FROM users u JOIN bans b ON b.user_id = u.id AND b.board = %(board)s
WHERE u.external_id = ANY(%(users)s)
