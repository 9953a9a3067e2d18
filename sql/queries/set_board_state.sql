-- Set whether a board accepts actions, or that it is deleted.
-- Index: boards_pk
UPDATE boards SET state = %(state)s WHERE board = %(board)s
