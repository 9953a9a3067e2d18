-- Read the properties that a deleted board had.
-- Index: boards_pk
SELECT board, partitions, seen_seconds, seen_shards, is_public, operator, score_order, score_min,
    score_max, lowering, points_from, season, time_zone, 'archived', points_per_action,
    points_per_window, window_s
FROM boards WHERE board = %(board)s AND state = 'deleted'
