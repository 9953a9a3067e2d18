-- Try to take the operators' lock on a partition, for this session; return whether it was free.
-- Index: none, advisory
SELECT pg_try_advisory_lock(%(class)s, %(key)s)
