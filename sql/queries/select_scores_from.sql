-- Read scores from a given id on, in order of ids: for a random sample, or page by page.
-- Index: scores_pk, then users_pk
SELECT s.user_id, u.external_id, s.score
FROM scores s JOIN users u ON u.id = s.user_id
WHERE s.board = %(board)s AND s.user_id >= %(start)s
ORDER BY s.user_id
LIMIT %(limit)s
