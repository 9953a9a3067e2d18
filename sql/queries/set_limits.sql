-- Set how long this session waits for locks and for statements; 0 is for ever.
-- Index: none
SELECT set_config('lock_timeout', %(lock)s, FALSE), set_config('statement_timeout', %(statement)s, FALSE)
