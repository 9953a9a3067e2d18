-- Delete the dead letters of a board for load tests.
-- Index: dead_events_pk
DELETE FROM dead_events WHERE board = %(board)s
