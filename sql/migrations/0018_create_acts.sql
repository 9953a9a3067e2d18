-- depends: 0017_add_board_rules
INSERT INTO schema_compatibility (migration, compatible_from)
VALUES ('0018_create_acts', '0016_create_schema_compatibility') ON CONFLICT DO NOTHING;
-- What administrators did: each row is written, with its row in the audit log, before Redis applies it. The change of
-- the score is the ledger's row with the action id `act:` || id; an act without one is pending or refused.
CREATE TABLE IF NOT EXISTS acts (
    id         TEXT        NOT NULL CONSTRAINT acts_pk PRIMARY KEY,
    at         TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    board      TEXT        NOT NULL,
    user_id    UUID        NOT NULL,
    kind       TEXT        NOT NULL
               CONSTRAINT acts_kind CHECK (kind IN ('correct', 'void', 'void window', 'undo', 'ban', 'unban')),
    delta      INT         NOT NULL,
    actor      TEXT        NOT NULL,
    reason     TEXT        NOT NULL,
    detail     JSONB       NOT NULL DEFAULT '{}',
    undoes     TEXT,
    refused_at TIMESTAMPTZ
);
-- An act is undone once.
CREATE UNIQUE INDEX IF NOT EXISTS acts_undoes ON acts (undoes) WHERE refused_at IS NULL;
CREATE INDEX IF NOT EXISTS acts_user ON acts (user_id, board);
CREATE INDEX IF NOT EXISTS acts_at ON acts (at);
-- The actions that an act voids.
CREATE TABLE IF NOT EXISTS act_actions (
    board     TEXT NOT NULL,
    user_id   UUID NOT NULL,
    action_id TEXT NOT NULL,
    act_id    TEXT NOT NULL CONSTRAINT act_actions_act_fk REFERENCES acts (id),
    CONSTRAINT act_actions_pk PRIMARY KEY (board, user_id, action_id, act_id)
);
-- Who is banned now, and by which act.
CREATE TABLE IF NOT EXISTS bans (
    board   TEXT NOT NULL,
    user_id UUID NOT NULL,
    act_id  TEXT NOT NULL CONSTRAINT bans_act_fk REFERENCES acts (id),
    CONSTRAINT bans_pk PRIMARY KEY (board, user_id)
);
