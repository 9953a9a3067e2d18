-- What is fixed when a board is made. Changing layout columns would hide remembered actions: reseed.
CREATE TABLE IF NOT EXISTS boards (
    board        TEXT        NOT NULL CONSTRAINT boards_pk PRIMARY KEY
                             CONSTRAINT boards_name CHECK (board ~ '^[a-z0-9_.-]{1,32}$'),
    partitions   INT         NOT NULL CONSTRAINT boards_partitions CHECK (partitions BETWEEN 1 AND 256),
    seen_seconds INT         NOT NULL CONSTRAINT boards_seen_seconds CHECK (seen_seconds > 0),
    seen_shards  INT         NOT NULL CONSTRAINT boards_seen_shards CHECK (seen_shards > 0),
    is_public    BOOLEAN     NOT NULL,
    created_at   TIMESTAMPTZ NOT NULL DEFAULT now()
);
