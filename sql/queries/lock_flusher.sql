-- Wait for the lease of a partition; it lasts as long as this session.
-- Index: none, advisory
SELECT pg_advisory_lock(%(class)s, %(key)s)
