-- Export the corrections, voids and bans of a user.
-- Index: users_external_id_key, acts_user
SELECT a.board AS "board",
       a.id AS "id",
       a.at AS "at",
       a.kind AS "kind",
       a.delta AS "delta",
       a.actor AS "actor",
       a.reason AS "reason",
       a.detail::TEXT AS "detail",
       a.undoes AS "undoes",
       a.refused_at AS "refusedAt"
FROM users u JOIN acts a ON a.user_id = u.id
WHERE u.external_id = %(user)s
ORDER BY a.at, a.id
