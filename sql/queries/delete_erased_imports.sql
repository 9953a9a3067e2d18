-- Remove staged users who were erased and whose name was not set again since.
-- Index: none, one pass over the audit log
DELETE FROM user_import
WHERE external_id IN (
    SELECT detail->>'user' FROM audit_log
    WHERE action IN ('user erase', 'user set')
    GROUP BY 1
    HAVING max(seq) FILTER (WHERE action = 'user erase')
        > coalesce(max(seq) FILTER (WHERE action = 'user set'), 0)
)
