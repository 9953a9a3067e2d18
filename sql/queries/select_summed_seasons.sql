-- List the seasons of a board that have kept sums or scores; an empty one on a board without seasons.
-- Index: score_sums_pk, boards_pk, scores_pk
SELECT season FROM score_sums WHERE board = %(board)s
UNION
SELECT coalesce(substr(k.board, length(k.season_of) + 2), '') FROM boards k
WHERE (k.board = %(board)s OR k.season_of = %(board)s)
  AND EXISTS (SELECT FROM scores s WHERE s.board = k.board)
ORDER BY season
