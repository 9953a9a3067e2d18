-- Export what the ledger did not count for a user, and the corrections of its score.
-- Index: users_external_id_key, then rejected_events_pk for each board
SELECT r.board AS "board",
       r.action_id AS "actionId",
       r.reason AS "reason",
       r.delta AS "delta",
       r.score_after AS "scoreAfter",
       r.occurred_at AS "occurredAt",
       r.recorded_at AS "recordedAt",
       r.corrected_at AS "correctedAt",
       r.part AS "partition",
       r.epoch AS "epoch",
       r.seq AS "seq",
       r.request_id AS "requestId"
FROM users u JOIN rejected_events r ON r.user_id = u.id
WHERE u.external_id = %(user)s
ORDER BY r.board, r.recorded_at, r.epoch, r.seq
