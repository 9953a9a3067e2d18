-- Export the actions of a user that exceeded a limit.
-- Index: users_external_id_key, then held_actions_pk for each board
SELECT h.board AS "board",
       h.action_id AS "actionId",
       h.limit_kind AS "limit",
       h.delta AS "delta",
       h.score AS "score",
       h.occurred_at AS "occurredAt",
       h.recorded_at AS "recordedAt",
       h.act_id AS "actId",
       h.voided_at AS "voidedAt",
       h.voided_by AS "voidedBy",
       h.voided_reason AS "voidedReason",
       h.part AS "partition",
       h.epoch AS "epoch",
       h.seq AS "seq",
       h.request_id AS "requestId"
FROM users u JOIN held_actions h ON h.user_id = u.id
WHERE u.external_id = %(user)s
ORDER BY h.board, h.id
