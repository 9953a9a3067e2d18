-- Insert the rows of staged users without one whose preferred ids are free.
-- Index: users_pk, users_external_id_key
INSERT INTO users (id, external_id)
SELECT id, external_id FROM user_import ORDER BY id
ON CONFLICT DO NOTHING
