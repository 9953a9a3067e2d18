-- Delete some scores of a board for load tests, with users that only it had; return how many scores.
-- Index: scores_pk, users_pk
WITH gone AS (
    DELETE FROM scores AS s
    USING (SELECT board, user_id FROM scores WHERE board = %(board)s LIMIT %(limit)s) AS page
    WHERE s.board = page.board AND s.user_id = page.user_id
    RETURNING s.user_id
), removed AS (
    DELETE FROM users USING gone
    WHERE users.id = gone.user_id AND starts_with(users.external_id, %(prefix)s)
)
SELECT count(*) FROM gone
