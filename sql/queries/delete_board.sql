-- Delete the row of a board for load tests.
-- Index: boards_pk
DELETE FROM boards WHERE board = %(board)s
