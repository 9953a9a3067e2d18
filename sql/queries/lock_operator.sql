-- Take the lock of operators on one partition, for this session; tells whether it was free.
-- Index: none, advisory
SELECT pg_try_advisory_lock(%(class)s, %(key)s)
