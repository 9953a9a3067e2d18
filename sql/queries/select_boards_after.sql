-- List a page of boards, in order of names.
-- Index: boards_pk
SELECT board, partitions, seen_seconds, seen_shards, is_public, operator, score_order, score_min,
    score_max, lowering, points_from, season, time_zone, state, points_per_action,
    points_per_window, window_s
FROM boards WHERE board > %(after)s AND state <> 'deleted' ORDER BY board LIMIT %(limit)s
