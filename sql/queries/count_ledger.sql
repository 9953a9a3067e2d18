-- Count the actions of a board, or of one user of it, without reading the ledger.
-- Index: scores_pk
SELECT coalesce(sum(s.actions), 0)::BIGINT FROM scores s
WHERE s.board = %(board)s
    AND (%(user)s::TEXT IS NULL OR s.user_id = (SELECT id FROM users WHERE external_id = %(user)s))
