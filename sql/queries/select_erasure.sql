-- Return when a user was last erased; NULL if never, or if `user set` was used since.
-- Index: none, one pass over the audit log
SELECT max(at) FILTER (WHERE action = 'user erase')
FROM audit_log
WHERE action IN ('user erase', 'user set') AND detail->>'user' = %(user_id)s
HAVING max(seq) FILTER (WHERE action = 'user erase')
    > coalesce(max(seq) FILTER (WHERE action = 'user set'), 0)
