-- Read the best scores of a board in ranking order: score, then first to reach it.
-- Index: scores_pk for the board, then a sort; for operators and tests, never for requests
SELECT u.external_id, s.score, s.actions, s.reached_at
FROM scores s JOIN users u ON u.id = s.user_id
WHERE s.board = %(board)s
ORDER BY CASE WHEN (SELECT score_order FROM boards WHERE board = %(board)s) = 'lowest' THEN s.score ELSE -s.score END,
    s.reached_at, s.last_seq
LIMIT %(limit)s
