-- Record staged actions that repeat counted ones at another position: Redis counted them twice.
-- Index: score_events_pk, held_actions_pk
-- A repeat of a held action is one, too: without the dedup window, Redis may have counted it.
-- Returns the seqs of new rows.
INSERT INTO rejected_events (
    board, part, user_id, action_id, epoch, seq, delta, score_after, request_id, reason, occurred_at
)
SELECT %(board)s::TEXT, %(part)s::INT, b.user_id, b.action_id, b.epoch, b.seq, b.delta, b.score_after,
       b.request_id, 'late_duplicate', least(b.occurred_at, now() + INTERVAL '1 minute')
FROM flush_batch b
WHERE EXISTS (
    SELECT FROM score_events e
    WHERE e.board = %(board)s AND e.user_id = b.user_id AND e.action_id = b.action_id
      AND (e.epoch, e.seq) <> (b.epoch, b.seq)
) OR EXISTS (
    SELECT FROM held_actions h
    WHERE h.board = %(board)s AND h.user_id = b.user_id AND h.action_id = b.action_id
)
ORDER BY b.user_id, b.action_id, b.epoch, b.seq
ON CONFLICT DO NOTHING
RETURNING seq
