-- depends: 0002_create_users
-- No index on score or reached_at: every update would lose HOT, and a reseed sorts once.
CREATE TABLE IF NOT EXISTS scores (
    board      TEXT        NOT NULL CONSTRAINT scores_board_fk REFERENCES boards (board),
    user_id    UUID        NOT NULL CONSTRAINT scores_user_fk REFERENCES users (id),
    score      INT         NOT NULL CONSTRAINT scores_score CHECK (score >= 0),
    actions    BIGINT      NOT NULL,
    reached_at TIMESTAMPTZ NOT NULL,
    last_seq   BIGINT      NOT NULL,
    CONSTRAINT scores_pk PRIMARY KEY (board, user_id)
) WITH (fillfactor = 75);
