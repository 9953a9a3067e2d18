-- Return whether the ledger of the other boards refuses a board, because its own partition is not complete yet.
-- Index: pg_constraint_conrelid_contypid_conname_index
SELECT EXISTS (
    SELECT FROM pg_constraint
    WHERE conrelid = to_regclass('score_events_others') AND conname = 'not_' || %(board)s
)
