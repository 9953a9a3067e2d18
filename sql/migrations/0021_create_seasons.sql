-- depends: 0020_create_held_actions
INSERT INTO schema_compatibility (migration, compatible_from)
VALUES ('0021_create_seasons', '0016_create_schema_compatibility') ON CONFLICT DO NOTHING;
-- A season has the scores of its name, `board@season`: the table boards has a row of that name for the foreign key
-- and the order of scores. Its state is `deleted`, so that no version takes it for a board.
ALTER TABLE boards
    ADD COLUMN IF NOT EXISTS season TEXT NOT NULL DEFAULT '',
    ADD COLUMN IF NOT EXISTS time_zone TEXT NOT NULL DEFAULT '',
    ADD COLUMN IF NOT EXISTS season_of TEXT,
    DROP CONSTRAINT IF EXISTS boards_name;
ALTER TABLE boards ADD CONSTRAINT boards_name CHECK (
    CASE WHEN season_of IS NULL THEN board ~ '^[a-z0-9_.-]{1,32}$'
        ELSE board ~ '^[a-z0-9_.-]{1,32}@[0-9A-Z-]{1,32}$' AND state = 'deleted' END
);
-- The season at the committed position, as id:start:end in s since 1970; empty on a board without seasons.
ALTER TABLE flush_state ADD COLUMN IF NOT EXISTS season TEXT NOT NULL DEFAULT '';
-- The season in which Redis applied the action. The key stays: an action counts once in all seasons.
ALTER TABLE score_events ADD COLUMN IF NOT EXISTS season TEXT;
CREATE TABLE IF NOT EXISTS seasons (
    board     TEXT        NOT NULL CONSTRAINT seasons_board_fk REFERENCES boards (board),
    season    TEXT        NOT NULL,
    starts_at TIMESTAMPTZ NOT NULL,
    ends_at   TIMESTAMPTZ NOT NULL,
    frozen_at TIMESTAMPTZ,
    CONSTRAINT seasons_pk PRIMARY KEY (board, season),
    CONSTRAINT seasons_span CHECK (starts_at < ends_at)
);
CREATE INDEX IF NOT EXISTS seasons_start ON seasons (board, starts_at);
CREATE INDEX IF NOT EXISTS seasons_open ON seasons (board) WHERE frozen_at IS NULL;
-- When each partition began a season: the record takes a seq of its stream.
CREATE TABLE IF NOT EXISTS season_turns (
    board  TEXT   NOT NULL,
    part   INT    NOT NULL,
    epoch  BIGINT NOT NULL,
    seq    BIGINT NOT NULL,
    season TEXT   NOT NULL,
    CONSTRAINT season_turns_pk PRIMARY KEY (board, part, epoch, seq)
);
-- The final standings of seasons, without users who were banned then.
CREATE TABLE IF NOT EXISTS season_standings (
    board   TEXT   NOT NULL,
    season  TEXT   NOT NULL,
    rank    BIGINT NOT NULL,
    user_id UUID   NOT NULL CONSTRAINT season_standings_user_fk REFERENCES users (id),
    score   INT    NOT NULL,
    CONSTRAINT season_standings_pk PRIMARY KEY (board, season, rank),
    CONSTRAINT season_standings_season_fk FOREIGN KEY (board, season) REFERENCES seasons (board, season)
);
CREATE UNIQUE INDEX IF NOT EXISTS season_standings_user ON season_standings (board, season, user_id);
-- Record a season and the name of its scores, with the rules of its board; a repeat changes nothing. It runs with the
-- owner's rights: the flusher may not add boards.
CREATE OR REPLACE FUNCTION open_season(the_board TEXT, the_season TEXT, start_s BIGINT, end_s BIGINT) RETURNS VOID
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO boards (
        board, partitions, seen_seconds, seen_shards, is_public, operator, score_order, score_min,
        score_max, lowering, points_from, state, season, time_zone, season_of
    )
    SELECT the_board || '@' || the_season, partitions, seen_seconds, seen_shards, is_public, operator, score_order,
        score_min, score_max, lowering, points_from, 'deleted', season, time_zone, the_board
    FROM boards WHERE board = the_board AND season_of IS NULL
    ON CONFLICT DO NOTHING;
    INSERT INTO seasons (board, season, starts_at, ends_at)
    VALUES (the_board, the_season, to_timestamp(start_s), to_timestamp(end_s))
    ON CONFLICT DO NOTHING;
END $$;
REVOKE ALL ON FUNCTION open_season FROM PUBLIC;
