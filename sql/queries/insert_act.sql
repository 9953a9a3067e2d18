-- Record an act before it is applied. The user has a row.
-- Index: users_external_id_key, acts_pk, acts_undoes
INSERT INTO acts (id, board, user_id, kind, delta, actor, reason, detail, undoes)
SELECT %(id)s, %(board)s, u.id, %(kind)s, %(delta)s, %(actor)s, %(reason)s, %(detail)s, %(undoes)s
FROM users u WHERE u.external_id = %(user_id)s
