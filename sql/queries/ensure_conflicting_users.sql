-- Insert the rows of staged users whose preferred ids belong to other users.
-- Index: users_external_id_key, users_pk
SELECT user_id_of(i.external_id, i.id) FROM user_import i
WHERE NOT EXISTS (SELECT FROM users u WHERE u.external_id = i.external_id)
ORDER BY i.external_id
