-- Read the server process of this session, and a setting that every session requests.
-- Index: none
SELECT pg_backend_pid(), current_setting('lock_timeout')
