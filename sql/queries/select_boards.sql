-- List all boards.
-- Index: none, a handful of rows
SELECT board, partitions, seen_seconds, seen_shards, is_public FROM boards ORDER BY board
