-- Create a board; an existing one is unchanged.
-- Index: boards_pk
INSERT INTO boards (board, partitions, seen_seconds, seen_shards, is_public)
VALUES (%(board)s, %(partitions)s, %(seen_seconds)s, %(seen_shards)s, %(is_public)s)
ON CONFLICT DO NOTHING
