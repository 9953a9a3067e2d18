-- Stage the users of an import.
-- Index: none
COPY user_import (id, external_id, name, email) FROM STDIN
