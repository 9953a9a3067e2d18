-- Read the names and metadata of users; users without both are left out.
-- Index: users_external_id_key
SELECT external_id, name, nullif(metadata, '{}') FROM users
WHERE external_id = ANY(%(user_ids)s) AND (name IS NOT NULL OR metadata <> '{}')
