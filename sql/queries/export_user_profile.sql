-- Export the row of a user.
-- Index: users_external_id_key
SELECT u.external_id AS "userId",
       u.id::TEXT AS "id",
       u.name AS "name",
       u.email AS "email",
       u.metadata AS "metadata",
       u.created_at AS "createdAt"
FROM users u
WHERE u.external_id = %(user)s
