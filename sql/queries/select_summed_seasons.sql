-- List the seasons that a board's kept sums have; an empty one on a board without seasons.
-- Index: score_sums_pk
SELECT DISTINCT season FROM score_sums WHERE board = %(board)s ORDER BY season
