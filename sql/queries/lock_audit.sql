-- Take the lock of the trigger of audit_log: one transaction at a time adds rows.
-- Index: none, advisory
SELECT pg_advisory_xact_lock(hashtext('scoreboard:audit_log'))
