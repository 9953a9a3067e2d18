-- Read the actions of a board since a time, counted and held ones, for the dedup window of a reseed.
-- Index: score_events_occurred_at, held_actions_occurred_at
SELECT u.external_id, e.action_id, e.delta, e.score_after, e.seq,
       (extract(epoch FROM e.occurred_at) * 1000)::BIGINT, FALSE
FROM score_events e JOIN users u ON u.id = e.user_id
WHERE e.board = %(board)s AND e.occurred_at >= to_timestamp(%(since_s)s)
UNION ALL
SELECT u.external_id, h.action_id, h.delta, h.score, h.seq, (extract(epoch FROM h.occurred_at) * 1000)::BIGINT, TRUE
FROM held_actions h JOIN users u ON u.id = h.user_id
WHERE h.board = %(board)s AND h.occurred_at >= to_timestamp(%(since_s)s)
