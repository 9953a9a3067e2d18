-- Delete the positions of a board for load tests.
-- Index: flush_state_pk
DELETE FROM flush_state WHERE board = %(board)s
