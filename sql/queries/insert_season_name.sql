-- Insert the name of a season's scores, with the rules of its board; an existing one is unchanged.
-- Index: boards_pk
INSERT INTO boards (
    board, partitions, seen_seconds, seen_shards, is_public, operator, score_order, score_min,
    score_max, lowering, points_from, state, season, time_zone, season_of
)
SELECT %(name)s, partitions, seen_seconds, seen_shards, is_public, operator, score_order, score_min,
    score_max, lowering, points_from, 'deleted', season, time_zone, board
FROM boards WHERE board = %(board)s
ON CONFLICT DO NOTHING
