-- Read the scores of users, with the columns that order equal scores.
-- Index: users_external_id_key, then scores_pk
SELECT u.external_id, s.score, s.reached_at, s.last_seq
FROM scores s JOIN users u ON u.id = s.user_id
WHERE s.board = %(board)s AND u.external_id = ANY(%(users)s)
