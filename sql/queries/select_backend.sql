-- Read which process of the server serves this statement, and a setting that each session asks for.
-- Index: none
SELECT pg_backend_pid(), current_setting('lock_timeout')
