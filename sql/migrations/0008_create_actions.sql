-- depends: 0007_create_dead_events
-- The catalogue: what each kind of action is worth. Mirrored to Redis; never the player's choice.
CREATE TABLE IF NOT EXISTS actions (
    kind       TEXT        NOT NULL CONSTRAINT actions_pk PRIMARY KEY
                           CONSTRAINT actions_kind CHECK (kind ~ '^[A-Za-z0-9._|@-]{1,64}$'),
    points     INT         NOT NULL CONSTRAINT actions_points CHECK (points BETWEEN 1 AND 1000000),
    enabled    BOOLEAN     NOT NULL DEFAULT TRUE,
    updated_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
