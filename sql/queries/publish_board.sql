-- Let everybody read a board, or only who has a token.
-- Index: boards_pk
UPDATE boards SET is_public = %(is_public)s WHERE board = %(board)s
