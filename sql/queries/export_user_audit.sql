-- Export the administrative changes that name a user.
-- Index: none, one pass over the audit log
SELECT a.seq AS "number",
       a.at AS "at",
       a.actor AS "actor",
       a.action AS "action",
       a.board AS "board",
       a.detail::TEXT AS "detail"
FROM audit_log a
WHERE a.detail->>'user' = %(user)s
ORDER BY a.seq
