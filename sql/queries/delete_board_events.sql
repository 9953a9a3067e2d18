-- Delete some rows of the ledger of a board for load tests.
-- Index: score_events_pk
DELETE FROM score_events AS e
USING (
    SELECT board, user_id, action_id FROM score_events WHERE board = %(board)s LIMIT %(limit)s
) AS page
WHERE e.board = page.board AND e.user_id = page.user_id AND e.action_id = page.action_id
