-- List the seasons of a board that have actions or scores; an empty one on a board without seasons.
-- Index: boards_pk, scores_pk; one pass over the partition of the board
SELECT DISTINCT coalesce(season, '') AS season FROM score_events WHERE board = %(board)s
UNION
SELECT coalesce(substr(k.board, length(k.season_of) + 2), '') FROM boards k
WHERE (k.board = %(board)s OR k.season_of = %(board)s)
  AND EXISTS (SELECT FROM scores s WHERE s.board = k.board)
ORDER BY season
