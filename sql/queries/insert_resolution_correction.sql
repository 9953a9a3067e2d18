-- Request a correction of a user's score in Redis after a dead letter was resolved.
-- Index: users_external_id_key, flush_state_pk, rejected_events_pk
-- Its seq is one above the committed one: a correction in progress does not include it. An action of
-- the stream may get that seq later; the action id contains a space, so the keys cannot conflict.
INSERT INTO rejected_events (
    board, part, user_id, action_id, epoch, seq, delta, score_after, request_id, reason, occurred_at
)
SELECT %(board)s, %(home)s, u.id, 'dead letter ' || %(id)s::BIGINT,
       coalesce(f.epoch, 0), coalesce(f.seq, 0) + 1, %(excess)s,
       coalesce(%(score_after)s::INT, 0), %(request_id)s, 'resolved', least(%(occurred_at)s, now() + INTERVAL '1 minute')
FROM users u LEFT JOIN flush_state f ON f.board = %(board)s AND f.part = %(home)s
WHERE u.external_id = %(user_id)s
