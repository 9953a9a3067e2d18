-- Read the settings that decide whether a COMMIT is durable, and whether the server is a standby.
-- Index: none
SELECT current_setting('synchronous_commit'), current_setting('fsync'), pg_is_in_recovery()
