-- Erase the name, the e-mail address and the metadata of a user; return which of them it had.
-- Index: users_external_id_key
-- No row is returned if there is no such user. The row is locked before it is read.
WITH held AS (
    SELECT id, name IS NOT NULL AS has_name, email IS NOT NULL AS has_email, metadata <> '{}' AS has_metadata
    FROM users WHERE external_id = %(user_id)s FOR NO KEY UPDATE
), erased AS (
    UPDATE users u SET name = NULL, email = NULL, metadata = NULL
    FROM held WHERE u.id = held.id AND (held.has_name OR held.has_email OR held.has_metadata)
    RETURNING u.id
)
SELECT held.has_name, held.has_email, coalesce(held.has_metadata, false), (SELECT count(*) FROM erased) FROM held
