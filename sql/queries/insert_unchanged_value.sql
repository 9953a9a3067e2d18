-- Record a value that Redis applied and that changes nothing in the ledger: a late duplicate had moved the score.
-- Index: users_external_id_key, rejected_events_pk
INSERT INTO rejected_events (
    board, part, user_id, action_id, epoch, seq, delta, score_after, request_id, reason, occurred_at
)
VALUES (
    %(board)s, %(part)s, user_id_of(%(user_id)s, %(preferred_id)s), %(action_id)s, %(epoch)s, %(seq)s, %(delta)s, %(score_after)s,
    %(request_id)s, 'late_duplicate', least(%(occurred_at)s, now() + INTERVAL '1 minute')
)
ON CONFLICT DO NOTHING
