-- depends: 0014_create_backups
-- Each row of the audit log gets a number without gaps and a hash of its content and of the hash of the
-- row before, so that a row that was changed, removed or inserted later can be found. The trigger sets
-- them, and the time, whatever the statement says; transactions that insert rows run one after another.
ALTER TABLE audit_log ADD COLUMN IF NOT EXISTS seq BIGINT;
ALTER TABLE audit_log ADD COLUMN IF NOT EXISTS previous TEXT;
ALTER TABLE audit_log ADD COLUMN IF NOT EXISTS hash TEXT;
CREATE UNIQUE INDEX IF NOT EXISTS audit_log_seq ON audit_log (seq);
CREATE OR REPLACE FUNCTION audit_log_hash(entry audit_log) RETURNS TEXT
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT encode(sha256(convert_to(jsonb_build_array(
        entry.seq, entry.previous, entry.id, (extract(epoch FROM entry.at) * 1000000)::BIGINT,
        entry.actor, entry.action, entry.board, entry.detail
    )::TEXT, 'UTF8')), 'hex')
$$;
CREATE OR REPLACE FUNCTION audit_log_chain() RETURNS TRIGGER
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    head audit_log;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('scoreboard:audit_log'));
    SELECT * INTO head FROM audit_log WHERE seq IS NOT NULL ORDER BY seq DESC LIMIT 1;
    NEW.seq := coalesce(head.seq, 0) + 1;
    NEW.previous := coalesce(head.hash, '');
    NEW.at := clock_timestamp();
    NEW.hash := audit_log_hash(NEW);
    RETURN NEW;
END $$;
-- Rows of before this migration.
DO $$
DECLARE
    entry audit_log;
    head audit_log;
BEGIN
    IF EXISTS (SELECT FROM audit_log WHERE seq IS NULL) THEN
        ALTER TABLE audit_log DISABLE TRIGGER audit_log_no_change;
        SELECT * INTO head FROM audit_log WHERE seq IS NOT NULL ORDER BY seq DESC LIMIT 1;
        FOR entry IN SELECT * FROM audit_log WHERE seq IS NULL ORDER BY id LOOP
            entry.seq := coalesce(head.seq, 0) + 1;
            entry.previous := coalesce(head.hash, '');
            entry.hash := audit_log_hash(entry);
            UPDATE audit_log SET seq = entry.seq, previous = entry.previous, hash = entry.hash
            WHERE id = entry.id;
            head := entry;
        END LOOP;
        ALTER TABLE audit_log ENABLE TRIGGER audit_log_no_change;
    END IF;
END $$;
CREATE OR REPLACE TRIGGER audit_log_chained BEFORE INSERT ON audit_log
    FOR EACH ROW EXECUTE FUNCTION audit_log_chain();
ALTER TABLE audit_log ALTER COLUMN seq SET NOT NULL;
ALTER TABLE audit_log ALTER COLUMN previous SET NOT NULL;
ALTER TABLE audit_log ALTER COLUMN hash SET NOT NULL;
