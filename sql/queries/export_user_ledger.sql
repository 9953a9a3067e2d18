-- Export the ledger of a user on every board.
-- Index: users_external_id_key, then score_events_pk for each board
SELECT e.board AS "board",
       e.season AS "season",
       e.action_id AS "actionId",
       e.kind AS "kind",
       e.delta AS "delta",
       e.score_after AS "scoreAfter",
       e.occurred_at AS "occurredAt",
       e.part AS "partition",
       e.epoch AS "epoch",
       e.seq AS "seq",
       e.request_id AS "requestId"
FROM users u JOIN score_events e ON e.user_id = u.id
WHERE u.external_id = %(user)s
ORDER BY e.board, e.occurred_at, e.epoch, e.seq
