-- Create the staging table of a flusher's connection; each COMMIT empties it.
-- Index: none, read whole
CREATE TEMP TABLE IF NOT EXISTS flush_batch (
    user_id     UUID        NOT NULL,
    external_id TEXT        NOT NULL,
    action_id   TEXT        NOT NULL,
    epoch       BIGINT      NOT NULL,
    seq         BIGINT      NOT NULL,
    delta       INT         NOT NULL,
    score_after INT         NOT NULL,
    kind        TEXT        NOT NULL,
    request_id  TEXT,
    occurred_at TIMESTAMPTZ NOT NULL,
    is_last     BOOLEAN     NOT NULL
) ON COMMIT DELETE ROWS
