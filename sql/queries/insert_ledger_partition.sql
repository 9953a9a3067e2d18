-- Record that a board has a partition of its own.
-- Index: ledger_partitions_pk
INSERT INTO ledger_partitions (board) VALUES (%(board)s)
