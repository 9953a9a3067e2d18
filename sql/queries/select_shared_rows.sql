-- List users without a row whose preferred id is another user's: an older version counted them there.
-- Index: users_pk, users_external_id_key
SELECT c.user_id, u.external_id
FROM unnest(%(users)s::TEXT[], %(ids)s::UUID[]) AS c (user_id, id)
JOIN users u ON u.id = c.id
WHERE NOT EXISTS (SELECT FROM users known WHERE known.external_id = c.user_id)
ORDER BY c.user_id
LIMIT %(limit)s
