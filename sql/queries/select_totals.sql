-- Count the users of a board, and sum their scores.
-- Index: scores_pk
SELECT count(*), coalesce(sum(score), 0)::BIGINT FROM scores WHERE board = %(board)s
