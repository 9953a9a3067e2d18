-- Whether this login may record acts and read the audit log, as that of the operator may
-- Index: none, only the catalogue of privileges
SELECT has_table_privilege('acts', 'INSERT') AND has_table_privilege('audit_log', 'SELECT')
