-- Read the names of users; users without one are left out.
-- Index: users_external_id_key
SELECT external_id, name FROM users
WHERE external_id = ANY(%(user_ids)s) AND name IS NOT NULL
