-- depends: 0018_create_acts
INSERT INTO schema_compatibility (migration, compatible_from)
VALUES ('0019_add_action_rules', '0016_create_schema_compatibility') ON CONFLICT DO NOTHING;
-- Who may send actions of a kind, where they count, and whether a game server must have signed them.
ALTER TABLE actions
    ADD COLUMN IF NOT EXISTS scope TEXT NOT NULL DEFAULT ''
        CONSTRAINT actions_scope CHECK (scope ~ '^[A-Za-z0-9._:/-]{0,64}$'),
    ADD COLUMN IF NOT EXISTS boards TEXT[] NOT NULL DEFAULT '{}'
        CONSTRAINT actions_boards CHECK (cardinality(boards) <= 8),
    ADD COLUMN IF NOT EXISTS needs_proof BOOLEAN NOT NULL DEFAULT FALSE;
