-- Release the lease of a partition, so that the session can serve another one.
-- Index: none, advisory
SELECT pg_advisory_unlock(%(class)s, %(key)s)
