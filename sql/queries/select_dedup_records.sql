-- Read the actions of a board since a time, for the dedup window of a reseed.
-- Index: score_events_occurred_at
SELECT u.external_id, e.action_id, e.delta, e.score_after, e.seq,
       (extract(epoch FROM e.occurred_at) * 1000)::BIGINT
FROM score_events e JOIN users u ON u.id = e.user_id
WHERE e.board = %(board)s AND e.occurred_at >= to_timestamp(%(since_s)s)
