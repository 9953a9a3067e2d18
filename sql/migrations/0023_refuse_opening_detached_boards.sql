-- depends: 0022_partition_ledger_by_board
INSERT INTO schema_compatibility (migration, compatible_from)
VALUES ('0023_refuse_opening_detached_boards', '0016_create_schema_compatibility') ON CONFLICT DO NOTHING;
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
CREATE OR REPLACE TRIGGER boards_stay_closed BEFORE UPDATE OF state ON boards
    FOR EACH ROW WHEN (NEW.state = 'open') EXECUTE FUNCTION board_stays_closed();
