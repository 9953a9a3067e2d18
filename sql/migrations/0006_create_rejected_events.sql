-- depends: 0005_create_flush_state
-- What Redis applied and the ledger did not count: late duplicates, and the corrections made for them.
CREATE TABLE IF NOT EXISTS rejected_events (
    board        TEXT        NOT NULL,
    user_id      UUID        NOT NULL,
    action_id    TEXT        NOT NULL,
    epoch        BIGINT      NOT NULL,
    seq          BIGINT      NOT NULL,
    part         INT         NOT NULL,
    delta        INT         NOT NULL,
    score_after  INT         NOT NULL,
    request_id   TEXT,
    reason       TEXT        NOT NULL
                 CONSTRAINT rejected_events_reason CHECK (reason IN ('late_duplicate', 'correction')),
    occurred_at  TIMESTAMPTZ NOT NULL,
    recorded_at  TIMESTAMPTZ NOT NULL DEFAULT now(),
    corrected_at TIMESTAMPTZ,
    CONSTRAINT rejected_events_pk PRIMARY KEY (board, user_id, action_id, epoch, seq)
);
-- Serves the flusher's start: what a crash left uncorrected.
CREATE INDEX IF NOT EXISTS rejected_events_open ON rejected_events (board, part)
    WHERE corrected_at IS NULL AND reason = 'late_duplicate';
