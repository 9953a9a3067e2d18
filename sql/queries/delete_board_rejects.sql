-- Delete the rejected events of a board for load tests.
-- Index: rejected_events_pk
DELETE FROM rejected_events WHERE board = %(board)s
