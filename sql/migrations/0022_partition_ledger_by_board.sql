-- depends: 0021_create_seasons
INSERT INTO schema_compatibility (migration, compatible_from)
VALUES ('0022_partition_ledger_by_board', '0016_create_schema_compatibility') ON CONFLICT DO NOTHING;
-- The ledger becomes a table with a partition for each board that was given one. The table of before, still by hash
-- of the user, is the partition of all other boards. No row is read or copied; the writers wait some milliseconds.
DO $$
DECLARE
    granted RECORD;
BEGIN
    IF to_regclass('score_events_others') IS NOT NULL THEN
        RETURN;
    END IF;
    LOCK TABLE score_events IN ACCESS EXCLUSIVE MODE;
    DROP TRIGGER score_events_no_change ON score_events; -- it comes back with ATTACH
    ALTER TABLE score_events RENAME TO score_events_others;
    ALTER TABLE score_events_others RENAME CONSTRAINT score_events_pk TO score_events_others_pk;
    ALTER INDEX score_events_occurred_at RENAME TO score_events_others_occurred_at;
    CREATE TABLE score_events (
        LIKE score_events_others INCLUDING DEFAULTS INCLUDING CONSTRAINTS,
        CONSTRAINT score_events_pk PRIMARY KEY (board, user_id, action_id)
    ) PARTITION BY LIST (board);
    CREATE INDEX score_events_occurred_at ON score_events USING BRIN (occurred_at);
    CREATE TRIGGER score_events_no_change BEFORE UPDATE OR DELETE ON score_events
        FOR EACH ROW EXECUTE FUNCTION score_events_is_append_only();
    CREATE TRIGGER score_events_no_truncate BEFORE TRUNCATE ON score_events
        FOR EACH STATEMENT EXECUTE FUNCTION score_events_is_append_only();
    -- The services that run meanwhile keep their rights: grants.sql runs in a later transaction.
    FOR granted IN
        SELECT a.grantee::regrole AS role, a.privilege_type AS privilege, '' AS columns
        FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid = 'score_events_others'::regclass AND a.grantee NOT IN (0, c.relowner)
        UNION ALL
        SELECT a.grantee::regrole, a.privilege_type, format('(%I)', t.attname)
        FROM pg_attribute t, aclexplode(t.attacl) a
        WHERE t.attrelid = 'score_events_others'::regclass AND a.grantee <> 0
    LOOP
        EXECUTE format(
            'GRANT %s %s ON score_events TO %s', granted.privilege, granted.columns, granted.role
        );
    END LOOP;
    ALTER TABLE score_events ATTACH PARTITION score_events_others DEFAULT;
END $$;
-- The boards with a partition of their own. While `detached_at` is set, the rows of the board are in the schema
-- `detached`, and their sums are in score_sums: scores.score is the kept sum.
CREATE TABLE IF NOT EXISTS ledger_partitions (
    board        TEXT        NOT NULL CONSTRAINT ledger_partitions_pk PRIMARY KEY,
    separated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    detached_at  TIMESTAMPTZ
);
CREATE TABLE IF NOT EXISTS score_sums (
    board   TEXT   NOT NULL CONSTRAINT score_sums_board_fk REFERENCES ledger_partitions (board),
    season  TEXT   NOT NULL,
    user_id UUID   NOT NULL CONSTRAINT score_sums_user_fk REFERENCES users (id),
    delta   BIGINT NOT NULL,
    actions BIGINT NOT NULL,
    CONSTRAINT score_sums_pk PRIMARY KEY (board, season, user_id)
);
-- Every action of an open board whose ledger is detached would become a dead letter. An earlier version does not look:
-- its processes that still run, and its commands that do not check the schema. The function runs with the owner's
-- rights, because grants.sql runs in a later transaction.
CREATE OR REPLACE FUNCTION board_stays_closed() RETURNS TRIGGER
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM ledger_partitions WHERE board = NEW.board AND detached_at IS NOT NULL) THEN
        RAISE EXCEPTION 'the ledger of board % is detached', NEW.board;
    END IF;
    RETURN NEW;
END $$;
REVOKE ALL ON FUNCTION board_stays_closed FROM PUBLIC;
CREATE OR REPLACE TRIGGER boards_stay_closed BEFORE UPDATE OF state ON boards
    FOR EACH ROW WHEN (NEW.state = 'open') EXECUTE FUNCTION board_stays_closed();
-- No service has a right on it.
CREATE SCHEMA IF NOT EXISTS detached;
