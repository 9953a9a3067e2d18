-- List all boards, without deleted ones.
-- Index: none, all rows of a small table
SELECT board, partitions, seen_seconds, seen_shards, is_public, operator, score_order, score_min,
    score_max, lowering, points_from, season, time_zone, state, points_per_action,
    points_per_window, window_s
FROM boards WHERE state <> 'deleted' ORDER BY board
