-- Set the number of partitions of a board.
-- Index: boards_pk
UPDATE boards SET partitions = %(partitions)s WHERE board = %(board)s
