-- depends: 0011_resolve_dead_events
-- The ledger is only ever added to, whoever asks: also the owner, by mistake. Detaching a partition
-- stays possible. Triggers of rows come to partitions by themselves, those of TRUNCATE do not.
CREATE OR REPLACE FUNCTION score_events_is_append_only() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'score_events is append only';
END $$;
CREATE OR REPLACE TRIGGER score_events_no_change BEFORE UPDATE OR DELETE ON score_events
    FOR EACH ROW EXECUTE FUNCTION score_events_is_append_only();
CREATE OR REPLACE TRIGGER score_events_no_truncate BEFORE TRUNCATE ON score_events
    FOR EACH STATEMENT EXECUTE FUNCTION score_events_is_append_only();
CREATE OR REPLACE TRIGGER score_events_no_truncate BEFORE TRUNCATE ON score_events_0
    FOR EACH STATEMENT EXECUTE FUNCTION score_events_is_append_only();
CREATE OR REPLACE TRIGGER score_events_no_truncate BEFORE TRUNCATE ON score_events_1
    FOR EACH STATEMENT EXECUTE FUNCTION score_events_is_append_only();
CREATE OR REPLACE TRIGGER score_events_no_truncate BEFORE TRUNCATE ON score_events_2
    FOR EACH STATEMENT EXECUTE FUNCTION score_events_is_append_only();
CREATE OR REPLACE TRIGGER score_events_no_truncate BEFORE TRUNCATE ON score_events_3
    FOR EACH STATEMENT EXECUTE FUNCTION score_events_is_append_only();
