-- depends: 0022_partition_ledger_by_board
INSERT INTO schema_compatibility (migration, compatible_from)
VALUES ('0023_add_season_revisions', '0016_create_schema_compatibility') ON CONFLICT DO NOTHING;
-- The season in which an action was held; NULL on a board without seasons, and in rows of earlier versions.
ALTER TABLE held_actions ADD COLUMN IF NOT EXISTS season TEXT;
-- How often the final standings were computed again after they were frozen, and when last.
ALTER TABLE seasons
    ADD COLUMN IF NOT EXISTS revisions INT NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS revised_at TIMESTAMPTZ;
-- Actions that were counted in a season after its end: its standings are computed again. A row is written with that of
-- the ledger, and needs no lock, so that neither waits for a season of millions of users.
CREATE TABLE IF NOT EXISTS season_revisions (
    id       BIGINT      GENERATED ALWAYS AS IDENTITY CONSTRAINT season_revisions_pk PRIMARY KEY,
    board    TEXT        NOT NULL,
    season   TEXT        NOT NULL,
    reason   TEXT        NOT NULL,
    asked_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    done_at  TIMESTAMPTZ
);
CREATE INDEX IF NOT EXISTS season_revisions_open ON season_revisions (board, season) WHERE done_at IS NULL;
