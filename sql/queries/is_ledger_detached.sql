-- Return whether the ledger of a board is detached.
-- Index: ledger_partitions_pk
SELECT EXISTS (SELECT FROM ledger_partitions WHERE board = %(board)s AND detached_at IS NOT NULL)
