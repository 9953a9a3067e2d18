-- depends: 0019_add_action_rules
INSERT INTO schema_compatibility (migration, compatible_from)
VALUES ('0020_create_held_actions', '0016_create_schema_compatibility') ON CONFLICT DO NOTHING;
-- How much better the actions of a user may make a score; NULL: no limit. Set them after every flusher is upgraded:
-- one that does not know held actions makes dead letters of them.
ALTER TABLE boards
    ADD COLUMN IF NOT EXISTS points_per_action INT
        CONSTRAINT boards_points_per_action CHECK (points_per_action > 0),
    ADD COLUMN IF NOT EXISTS points_per_window INT
        CONSTRAINT boards_points_per_window CHECK (points_per_window > 0),
    ADD COLUMN IF NOT EXISTS window_s INT
        CONSTRAINT boards_window_s CHECK (window_s BETWEEN 10 AND 2678400);
ALTER TABLE boards DROP CONSTRAINT IF EXISTS boards_window;
ALTER TABLE boards ADD CONSTRAINT boards_window CHECK ((points_per_window IS NULL) = (window_s IS NULL));
-- Actions that exceeded a limit. They changed no score and never count by themselves: a release is an act. A row stays,
-- so that a late repeat of its action counts nothing.
CREATE TABLE IF NOT EXISTS held_actions (
    board         TEXT        NOT NULL,
    user_id       UUID        NOT NULL,
    action_id     TEXT        NOT NULL,
    id            BIGINT      GENERATED ALWAYS AS IDENTITY CONSTRAINT held_actions_id_key UNIQUE,
    part          INT         NOT NULL,
    epoch         BIGINT      NOT NULL,
    seq           BIGINT      NOT NULL,
    delta         INT         NOT NULL CONSTRAINT held_actions_delta CHECK (delta <> 0),
    score         INT         NOT NULL CONSTRAINT held_actions_score CHECK (score >= 0),
    limit_kind    TEXT        NOT NULL
                  CONSTRAINT held_actions_limit_kind CHECK (limit_kind IN ('action', 'window')),
    request_id    TEXT,
    occurred_at   TIMESTAMPTZ NOT NULL,
    recorded_at   TIMESTAMPTZ NOT NULL DEFAULT now(),
    act_id        TEXT CONSTRAINT held_actions_act_fk REFERENCES acts (id),
    voided_at     TIMESTAMPTZ,
    voided_by     TEXT,
    voided_reason TEXT,
    CONSTRAINT held_actions_pk PRIMARY KEY (board, user_id, action_id)
);
-- Serves the list of what waits for an operator.
CREATE INDEX IF NOT EXISTS held_actions_open ON held_actions (board, id)
    WHERE voided_at IS NULL;
-- Serves the reseed, which reads the last generations of actions.
CREATE INDEX IF NOT EXISTS held_actions_occurred_at ON held_actions USING BRIN (occurred_at);
ALTER TABLE acts DROP CONSTRAINT IF EXISTS acts_kind;
ALTER TABLE acts ADD CONSTRAINT acts_kind
    CHECK (kind IN ('correct', 'void', 'void window', 'undo', 'ban', 'unban', 'release'));
