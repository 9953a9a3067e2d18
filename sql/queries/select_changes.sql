-- Read the actions of a board, counted and held ones, that its partitions committed after a seq of each. For a reshard.
-- Index: score_events_occurred_at, held_actions_occurred_at
SELECT u.external_id, e.action_id, e.delta, e.score_after, e.seq,
       (extract(epoch FROM e.occurred_at) * 1000)::BIGINT, FALSE
FROM score_events e
JOIN unnest(%(parts)s::INT[], %(seqs)s::BIGINT[]) AS known (part, seq) ON known.part = e.part AND e.seq > known.seq
JOIN users u ON u.id = e.user_id
WHERE e.board = %(board)s AND e.occurred_at >= to_timestamp(%(since_s)s)
UNION ALL
SELECT u.external_id, h.action_id, h.delta, h.score, h.seq,
       (extract(epoch FROM h.occurred_at) * 1000)::BIGINT, TRUE
FROM held_actions h
JOIN unnest(%(parts)s::INT[], %(seqs)s::BIGINT[]) AS known (part, seq) ON known.part = h.part AND h.seq > known.seq
JOIN users u ON u.id = h.user_id
WHERE h.board = %(board)s AND h.occurred_at >= to_timestamp(%(since_s)s)
