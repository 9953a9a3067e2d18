-- depends: 0003_create_scores
-- The ledger: its primary key decides what counts. Never pruned: scores.score is the sum of its deltas.
CREATE TABLE IF NOT EXISTS score_events (
    board       TEXT        NOT NULL,
    user_id     UUID        NOT NULL,
    action_id   TEXT        NOT NULL,
    part        INT         NOT NULL,
    epoch       BIGINT      NOT NULL,
    seq         BIGINT      NOT NULL,
    delta       INT         NOT NULL CONSTRAINT score_events_delta CHECK (delta <> 0),
    score_after INT         NOT NULL CONSTRAINT score_events_score_after CHECK (score_after >= 0),
    kind        TEXT        NOT NULL,
    request_id  TEXT,
    occurred_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT score_events_pk PRIMARY KEY (board, user_id, action_id)
) PARTITION BY HASH (user_id);
CREATE TABLE IF NOT EXISTS score_events_0 PARTITION OF score_events FOR VALUES WITH (MODULUS 4, REMAINDER 0);
CREATE TABLE IF NOT EXISTS score_events_1 PARTITION OF score_events FOR VALUES WITH (MODULUS 4, REMAINDER 1);
CREATE TABLE IF NOT EXISTS score_events_2 PARTITION OF score_events FOR VALUES WITH (MODULUS 4, REMAINDER 2);
CREATE TABLE IF NOT EXISTS score_events_3 PARTITION OF score_events FOR VALUES WITH (MODULUS 4, REMAINDER 3);
-- Serves the reseed, which reads the last generations of actions.
CREATE INDEX IF NOT EXISTS score_events_occurred_at ON score_events USING BRIN (occurred_at);
