-- Make the table an import is staged in; it goes with the transaction.
-- Index: none
CREATE TEMP TABLE user_import (id UUID NOT NULL, external_id TEXT NOT NULL, name TEXT, email TEXT)
ON COMMIT DROP
