-- Create the staging table of an import; it is dropped at the end of the transaction.
-- Index: none
CREATE TEMP TABLE user_import (id UUID NOT NULL, external_id TEXT NOT NULL, name TEXT, email TEXT, metadata TEXT)
ON COMMIT DROP
