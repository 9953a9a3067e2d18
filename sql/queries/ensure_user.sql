-- Insert a user's row if there is none.
-- Index: users_external_id_key, users_pk
SELECT user_id_of(%(user_id)s, %(preferred_id)s)
