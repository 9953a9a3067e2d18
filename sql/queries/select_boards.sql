-- List all boards.
-- Index: none, a handful of rows
SELECT board, partitions, seen_seconds, seen_shards, is_public, operator, score_order, score_min,
    score_max, lowering, points_from, state
FROM boards ORDER BY board
