-- Read what a COMMIT is worth on this server, and whether it may write.
-- Index: none
SELECT current_setting('synchronous_commit'), current_setting('fsync'), pg_is_in_recovery()
