-- Record staged actions that repeat counted ones at another position: Redis counted them twice.
-- Index: score_events_pk
-- Returns the seqs of new rows.
INSERT INTO rejected_events (
    board, part, user_id, action_id, epoch, seq, delta, score_after, request_id, reason, occurred_at
)
SELECT %(board)s::TEXT, %(part)s::INT, b.user_id, b.action_id, b.epoch, b.seq, b.delta, b.score_after,
       b.request_id, 'late_duplicate', least(b.occurred_at, now() + INTERVAL '1 minute')
FROM flush_batch b
JOIN score_events e ON e.board = %(board)s AND e.user_id = b.user_id AND e.action_id = b.action_id
WHERE (e.epoch, e.seq) <> (b.epoch, b.seq)
ORDER BY b.user_id, b.action_id, b.epoch, b.seq
ON CONFLICT DO NOTHING
RETURNING seq
