-- depends: 0026_create_user_search
INSERT INTO schema_compatibility (migration, compatible_from)
VALUES ('0027_announce_names', '0016_create_schema_compatibility') ON CONFLICT DO NOTHING;
-- A name or metadata that is set, changed or erased is announced to the processes that keep them in memory
-- (scoreboard/ledger/name_cache.py): the ids as a JSON array, or * for more than 50 users of one statement. A payload has at
-- most 8,000 bytes, and an id at most 128. Rows without either, which the flusher inserts, are not announced.
CREATE OR REPLACE FUNCTION announce_names() RETURNS TRIGGER
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    ids TEXT[];
BEGIN
    IF TG_OP = 'INSERT' THEN
        ids := ARRAY(SELECT external_id FROM new_users WHERE name IS NOT NULL OR metadata IS NOT NULL LIMIT 51);
    -- The rows of a large statement, such as an import, are not compared: that would take longer than to read names again.
    ELSIF (SELECT count(*) FROM (SELECT FROM new_users LIMIT 51) AS updated) > 50 THEN
        PERFORM pg_notify('scoreboard_names', '*');
        RETURN NULL;
    ELSE
        ids := ARRAY(
            SELECT n.external_id FROM new_users n JOIN old_users o ON o.id = n.id
            WHERE (n.name, n.metadata) IS DISTINCT FROM (o.name, o.metadata)
        );
    END IF;
    IF cardinality(ids) > 50 THEN
        PERFORM pg_notify('scoreboard_names', '*');
    ELSIF cardinality(ids) > 0 THEN
        PERFORM pg_notify('scoreboard_names', array_to_json(ids)::TEXT);
    END IF;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER users_announce_inserted AFTER INSERT ON users
REFERENCING NEW TABLE AS new_users FOR EACH STATEMENT EXECUTE FUNCTION announce_names();
CREATE OR REPLACE TRIGGER users_announce_updated AFTER UPDATE ON users
REFERENCING NEW TABLE AS new_users OLD TABLE AS old_users FOR EACH STATEMENT EXECUTE FUNCTION announce_names();
