-- depends: 0024_guard_seasons
INSERT INTO schema_compatibility (migration, compatible_from)
VALUES ('0025_add_user_metadata', '0016_create_schema_compatibility') ON CONFLICT DO NOTHING;
-- A small JSON object about a user, as text: replies contain it as it was set, and jsonb would write 1e300 as 301 digits.
ALTER TABLE users ADD COLUMN IF NOT EXISTS metadata TEXT;
ALTER TABLE users DROP CONSTRAINT IF EXISTS users_metadata;
-- NOT VALID: no row has any yet, and a scan of the table would hold its lock.
ALTER TABLE users ADD CONSTRAINT users_metadata
    CHECK (octet_length(metadata) <= 1024 AND json_typeof(metadata::JSON) = 'object') NOT VALID;
