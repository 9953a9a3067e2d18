-- Try to become the process that verifies idle boards, until this session ends.
-- Index: none, advisory
SELECT pg_try_advisory_lock(%(class)s, 0)
