-- depends: 0016_create_schema_compatibility
INSERT INTO schema_compatibility (migration, compatible_from)
VALUES ('0017_add_board_rules', '0016_create_schema_compatibility') ON CONFLICT DO NOTHING;
-- The rules are fixed when a board is made: the ledger's deltas were computed by them.
ALTER TABLE boards
    ADD COLUMN IF NOT EXISTS operator TEXT NOT NULL DEFAULT 'add'
        CONSTRAINT boards_operator CHECK (operator IN ('add', 'best', 'last')),
    ADD COLUMN IF NOT EXISTS score_order TEXT NOT NULL DEFAULT 'highest'
        CONSTRAINT boards_score_order CHECK (score_order IN ('highest', 'lowest')),
    ADD COLUMN IF NOT EXISTS score_min INT NOT NULL DEFAULT 0
        CONSTRAINT boards_score_min CHECK (score_min >= 0),
    ADD COLUMN IF NOT EXISTS score_max INT NOT NULL DEFAULT 2147483647
        CONSTRAINT boards_score_max CHECK (score_max > score_min),
    ADD COLUMN IF NOT EXISTS lowering TEXT NOT NULL DEFAULT 'nobody'
        CONSTRAINT boards_lowering CHECK (lowering IN ('nobody', 'trusted', 'players')),
    ADD COLUMN IF NOT EXISTS points_from TEXT NOT NULL DEFAULT 'catalogue'
        CONSTRAINT boards_points_from CHECK (points_from IN ('catalogue', 'stated')),
    ADD COLUMN IF NOT EXISTS state TEXT NOT NULL DEFAULT 'open'
        CONSTRAINT boards_state CHECK (state IN ('open', 'archived', 'deleted'));
