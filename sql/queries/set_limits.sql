-- Set the lock and statement time-outs of this session; 0 disables one.
-- Index: none
SELECT set_config('lock_timeout', %(lock)s, FALSE), set_config('statement_timeout', %(statement)s, FALSE)
