-- Copy the users of an import to the staging table.
-- Index: none
COPY user_import (id, external_id, name, email, metadata) FROM STDIN
