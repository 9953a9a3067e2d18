-- Wait until nobody else copies the catalogue; held until this transaction ends.
-- Index: none, advisory
SELECT pg_advisory_xact_lock(%(class)s, 0)
