-- depends: 0006_create_rejected_events
-- What could not be read or stored, as it was, with the reason; owed until an operator applies it.
CREATE TABLE IF NOT EXISTS dead_events (
    board       TEXT        NOT NULL,
    part        INT         NOT NULL,
    stream_id   TEXT        NOT NULL,
    raw_hash    BYTEA       NOT NULL,
    raw         BYTEA       NOT NULL,
    reason      TEXT        NOT NULL,
    seq         BIGINT,
    recorded_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    resolved_at TIMESTAMPTZ,
    CONSTRAINT dead_events_pk PRIMARY KEY (board, part, stream_id, raw_hash)
);
