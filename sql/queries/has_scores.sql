-- Tell whether a board has scores, in any season.
-- Index: scores_pk
SELECT EXISTS (
    SELECT FROM boards k
    WHERE (k.board = %(board)s OR k.season_of = %(board)s)
      AND EXISTS (SELECT FROM scores s WHERE s.board = k.board)
)
