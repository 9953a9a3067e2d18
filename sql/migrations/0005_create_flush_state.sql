-- depends: 0004_create_score_events
-- How far each partition's stream is committed; its row lock makes flushers take turns.
CREATE TABLE IF NOT EXISTS flush_state (
    board     TEXT   NOT NULL CONSTRAINT flush_state_board_fk REFERENCES boards (board),
    part      INT    NOT NULL,
    epoch     BIGINT NOT NULL,
    seq       BIGINT NOT NULL,
    stream_id TEXT   NOT NULL,
    CONSTRAINT flush_state_pk PRIMARY KEY (board, part)
);
