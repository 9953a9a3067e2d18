-- Set the ids of staged rows to the ids of their users' rows where they differ.
-- Index: users_pk, users_external_id_key
UPDATE flush_batch b SET user_id = known.id
FROM (
    SELECT l.external_id, user_id_of(l.external_id, l.user_id) AS id
    FROM flush_batch l
    WHERE l.is_last
      AND l.external_id IS DISTINCT FROM (SELECT u.external_id FROM users u WHERE u.id = l.user_id)
    ORDER BY l.external_id
) known
WHERE known.external_id = b.external_id
