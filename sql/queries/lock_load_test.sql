-- Try to take the lock on a board for load tests, for this session; return whether it was free.
-- Index: none, advisory
SELECT pg_try_advisory_lock(%(class)s, hashtext(%(board)s))
