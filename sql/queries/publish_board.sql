-- Set whether a board is public.
-- Index: boards_pk
UPDATE boards SET is_public = %(is_public)s WHERE board = %(board)s
