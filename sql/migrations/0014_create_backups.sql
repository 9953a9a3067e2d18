-- depends: 0013_add_flush_clock
-- Backups of this database, as reported by the tool that made them.
-- check_method says how a backup was checked; NULL: it was not.
CREATE TABLE IF NOT EXISTS backups (
    id           BIGINT      NOT NULL GENERATED ALWAYS AS IDENTITY CONSTRAINT backups_pk PRIMARY KEY,
    taken_at     TIMESTAMPTZ NOT NULL,
    location     TEXT        NOT NULL,
    check_method TEXT,
    recorded_at  TIMESTAMPTZ NOT NULL DEFAULT now(),
    recorded_by  TEXT        NOT NULL
);
CREATE INDEX IF NOT EXISTS backups_checked ON backups (taken_at) WHERE check_method IS NOT NULL;
