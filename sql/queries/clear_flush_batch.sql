-- Empty the staging table within a transaction, between two parts of a batch.
-- Index: none, all rows
DELETE FROM flush_batch
