-- Find users by a whole id, or by the beginning of an id or of a name.
-- Index: users_external_id_key, users_external_id_search, users_name_search
SELECT external_id, name FROM (
    (SELECT external_id, name, 0 AS place FROM users WHERE external_id = %(query)s)
    UNION ALL
    (SELECT external_id, name, 1 FROM users
    WHERE external_id COLLATE "C" LIKE %(beginning)s::TEXT
    ORDER BY external_id COLLATE "C" LIMIT %(limit)s)
    UNION ALL
    (SELECT external_id, name, 1 FROM users
    WHERE lower(name) COLLATE "C" LIKE lower(%(beginning)s::TEXT)
    ORDER BY lower(name) COLLATE "C" LIMIT %(limit)s)
) found
GROUP BY external_id, name
ORDER BY min(place), external_id
LIMIT %(limit)s
