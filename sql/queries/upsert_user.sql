-- Say who a user is; what is not given stays as it is.
-- Index: users_pk
INSERT INTO users AS u (id, external_id, name, email)
VALUES (%(id)s, %(user_id)s, %(name)s, %(email)s)
ON CONFLICT (id) DO UPDATE
SET name = coalesce(excluded.name, u.name), email = coalesce(excluded.email, u.email)
