-- Have the flusher set a user's score in Redis to what is due after a parked entry was resolved.
-- Index: users_external_id_key, flush_state_pk, rejected_events_pk
-- Its seq is one above what is committed: a correction on its way did not know of it yet. An action
-- of the stream may take that seq later; no action has an id with a space, so the key stays free.
INSERT INTO rejected_events (
    board, part, user_id, action_id, epoch, seq, delta, score_after, request_id, reason, occurred_at
)
SELECT %(board)s, %(home)s, u.id, 'parked entry ' || %(id)s::BIGINT,
       coalesce(f.epoch, 0), coalesce(f.seq, 0) + 1, %(excess)s,
       coalesce(%(score_after)s::INT, 0), %(request_id)s, 'resolved', least(%(occurred_at)s, now() + INTERVAL '1 minute')
FROM users u LEFT JOIN flush_state f ON f.board = %(board)s AND f.part = %(home)s
WHERE u.external_id = %(user_id)s
