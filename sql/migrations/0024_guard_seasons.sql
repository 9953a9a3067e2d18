-- depends: 0023_add_season_revisions
INSERT INTO schema_compatibility (migration, compatible_from)
VALUES ('0024_guard_seasons', '0016_create_schema_compatibility') ON CONFLICT DO NOTHING;
-- A version before seasons would count the actions of a season without one, so from the first board with seasons on
-- it refuses the schema. A flusher that runs already refuses it for each partition that it begins to serve.
CREATE OR REPLACE FUNCTION guard_seasons() RETURNS TRIGGER
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE schema_compatibility SET compatible_from = migration
    WHERE migration = '0021_create_seasons' AND compatible_from <> migration;
    RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION guard_seasons FROM PUBLIC;
CREATE OR REPLACE TRIGGER boards_guard_seasons AFTER INSERT ON boards
FOR EACH ROW WHEN (NEW.season <> '') EXECUTE FUNCTION guard_seasons();
UPDATE schema_compatibility SET compatible_from = migration
WHERE migration = '0021_create_seasons' AND EXISTS (SELECT FROM boards WHERE season <> '');
