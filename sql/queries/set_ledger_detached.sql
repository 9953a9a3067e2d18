-- Record whether the ledger of a board is detached.
-- Index: ledger_partitions_pk
UPDATE ledger_partitions SET detached_at = CASE WHEN %(is_detached)s THEN now() END
WHERE board = %(board)s
