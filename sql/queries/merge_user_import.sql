-- Take over the staged users, in the order in which everyone locks them; empty fields change nothing.
-- Index: users_pk
INSERT INTO users AS u (id, external_id, name, email)
SELECT id, external_id, name, email FROM user_import ORDER BY id
ON CONFLICT (id) DO UPDATE
SET name = coalesce(excluded.name, u.name), email = coalesce(excluded.email, u.email)
