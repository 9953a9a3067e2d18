-- Return whether this login may switch the trigger that keeps the ledger: whether it owns the table.
-- Index: none, the catalogue
SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = 'score_events'::regclass
