-- Read the properties of a board.
-- Index: boards_pk
SELECT board, partitions, seen_seconds, seen_shards, is_public FROM boards WHERE board = %(board)s
