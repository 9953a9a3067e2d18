-- Erase the name and the e-mail address of a user; return which of them it had.
-- Index: users_external_id_key
-- No row is returned if there is no such user. The row is locked before it is read.
WITH held AS (
    SELECT id, name IS NOT NULL AS has_name, email IS NOT NULL AS has_email
    FROM users WHERE external_id = %(user_id)s FOR UPDATE
), erased AS (
    UPDATE users u SET name = NULL, email = NULL
    FROM held WHERE u.id = held.id AND (held.has_name OR held.has_email)
    RETURNING u.id
)
SELECT held.has_name, held.has_email, (SELECT count(*) FROM erased) FROM held
