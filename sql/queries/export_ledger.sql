-- Export the ledger of a board, or of one user of it, in no particular order.
-- Index: none for a board, one pass over the ledger; score_events_pk for a user
SELECT e.board AS "board",
       u.external_id AS "userId",
       e.action_id AS "actionId",
       e.kind AS "kind",
       e.delta AS "delta",
       e.score_after AS "scoreAfter",
       e.occurred_at AS "occurredAt",
       e.part AS "partition",
       e.epoch AS "epoch",
       e.seq AS "seq",
       e.request_id AS "requestId",
       e.season AS "season"
FROM score_events e JOIN users u ON u.id = e.user_id
WHERE e.board = %(board)s
    AND (%(user)s::TEXT IS NULL OR e.user_id = (SELECT id FROM users WHERE external_id = %(user)s))
    AND (%(since)s::TIMESTAMPTZ IS NULL OR e.occurred_at >= %(since)s)
    AND (%(until)s::TIMESTAMPTZ IS NULL OR e.occurred_at < %(until)s)
