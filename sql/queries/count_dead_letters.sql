-- Count the unresolved dead letters of each board that has some.
-- Index: dead_events_open
SELECT board, count(*) FROM dead_events WHERE resolved_at IS NULL GROUP BY board
