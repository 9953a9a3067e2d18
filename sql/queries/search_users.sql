-- Find users by a whole id, or by the beginning of an id or of a name.
-- Index: users_external_id_key for a whole id; else none, one pass over users, within the statement's time limit
SELECT external_id, name FROM (
    SELECT external_id, name, 0 AS place FROM users WHERE external_id = %(query)s
    UNION ALL
    SELECT external_id, name, 1 FROM users
    WHERE external_id <> %(query)s
        AND (starts_with(external_id, %(query)s) OR starts_with(lower(name), lower(%(query)s)))
) found
ORDER BY place, external_id
LIMIT %(limit)s
