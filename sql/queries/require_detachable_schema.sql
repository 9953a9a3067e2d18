-- Keep versions that do not know the kept sums from starting: to them, the scores would differ from the ledger.
-- Index: schema_compatibility_pk
UPDATE schema_compatibility SET compatible_from = migration
WHERE migration = '0022_partition_ledger_by_board'
