-- Remove the kept sums of a board whose rows are in the ledger again.
-- Index: score_sums_pk
DELETE FROM score_sums WHERE board = %(board)s
