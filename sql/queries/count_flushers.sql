-- Count the flushers of a partition: the one that holds its lease, and those that wait for it.
-- Index: none, a view of the server
SELECT count(*) FROM pg_locks
WHERE locktype = 'advisory' AND objsubid = 2
AND classid = %(class)s::BIGINT::OID AND objid = (%(key)s::BIGINT & 4294967295)::OID
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
