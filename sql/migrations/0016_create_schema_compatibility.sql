-- depends: 0015_chain_audit_log
-- Which versions can run on a later migration: those that know the migration `compatible_from`. Each later
-- migration inserts its own row first, so that a version that does not know it can decide whether to start.
CREATE TABLE IF NOT EXISTS schema_compatibility (
    migration       TEXT NOT NULL CONSTRAINT schema_compatibility_pk PRIMARY KEY,
    compatible_from TEXT NOT NULL
);
