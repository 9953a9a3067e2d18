-- Read a user and its score on a board.
-- Index: users_external_id_key, scores_pk
SELECT u.id, u.name, u.email, u.metadata, u.created_at, s.score, s.actions, s.reached_at
FROM users u LEFT JOIN scores s ON s.user_id = u.id AND s.board = %(scores)s
WHERE u.external_id = %(user_id)s
