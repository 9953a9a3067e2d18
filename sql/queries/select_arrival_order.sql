-- Return the users who have a score, in the order in which they reached it.
-- Index: users_external_id_key, then scores_pk
SELECT u.external_id
FROM scores s JOIN users u ON u.id = s.user_id
WHERE s.board = %(board)s AND u.external_id = ANY(%(users)s) AND s.score = %(score)s
ORDER BY s.reached_at, s.last_seq
