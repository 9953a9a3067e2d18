-- depends: 0025_add_user_metadata
INSERT INTO schema_compatibility (migration, compatible_from)
VALUES ('0026_create_user_search', '0016_create_schema_compatibility') ON CONFLICT DO NOTHING;
-- Administrators search users by the beginning of an id or of a name (sql/queries/search_users.sql). With the collation of
-- the database, an index does not serve LIKE. The users are locked against new ones while the indexes are made, about two
-- seconds for a million users; larger installations make them before, concurrently and with these names
-- (docs/how-to/upgrade.md).
CREATE INDEX IF NOT EXISTS users_external_id_search ON users (external_id COLLATE "C");
CREATE INDEX IF NOT EXISTS users_name_search ON users (lower(name) COLLATE "C") WHERE name IS NOT NULL;
