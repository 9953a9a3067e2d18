-- Update the staged users, in the common lock order; empty fields change nothing.
-- Index: users_external_id_key, users_pk
INSERT INTO users AS u (id, external_id, name, email, metadata)
SELECT known.id, i.external_id, i.name, i.email, i.metadata
FROM user_import i JOIN users known ON known.external_id = i.external_id
ORDER BY known.id
ON CONFLICT (id) DO UPDATE
SET name = coalesce(excluded.name, u.name), email = coalesce(excluded.email, u.email),
    metadata = coalesce(excluded.metadata, u.metadata)
