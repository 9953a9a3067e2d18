-- Return the values of parameters of PostgreSQL, without those that this login may not see.
-- Index: none
SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(%(names)s)
