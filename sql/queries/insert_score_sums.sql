-- Keep the sums of a board's ledger.
-- Index: none, one pass over the partition of the board
INSERT INTO score_sums (board, season, user_id, delta, actions)
SELECT board, coalesce(season, ''), user_id, sum(delta), count(*)
FROM score_events WHERE board = %(board)s
GROUP BY 1, 2, 3
