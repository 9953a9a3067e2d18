-- Update a user; NULL leaves an attribute unchanged.
-- Index: users_external_id_key
UPDATE users
SET name = coalesce(%(name)s, name), email = coalesce(%(email)s, email),
    metadata = coalesce(%(metadata)s, metadata)
WHERE external_id = %(user_id)s
