-- Create a board; an existing one is unchanged.
-- Index: boards_pk
INSERT INTO boards (
    board, partitions, seen_seconds, seen_shards, is_public, operator, score_order, score_min,
    score_max, lowering, points_from, season, time_zone, points_per_action, points_per_window,
    window_s
)
VALUES (
    %(board)s, %(partitions)s, %(seen_seconds)s, %(seen_shards)s, %(is_public)s, %(operator)s,
    %(order)s, %(score_min)s, %(score_max)s, %(lowering)s, %(points)s, %(season)s,
    %(time_zone)s,
    nullif(%(per_action)s::INT, 0), nullif(%(per_window)s::INT, 0), nullif(%(window_s)s::INT, 0)
)
ON CONFLICT DO NOTHING
