-- Lock the list of boards against other copies until this transaction ends.
-- Index: none, advisory
SELECT pg_advisory_xact_lock(%(class)s, 0)
