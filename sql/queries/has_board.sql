-- Return whether a board has ever existed: its ledger is kept, whatever its state.
-- Index: boards_pk
SELECT EXISTS (SELECT FROM boards WHERE board = %(board)s)
