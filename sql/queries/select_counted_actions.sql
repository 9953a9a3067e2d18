-- List the given actions that the ledger has or that are held, and those that were rejected at the given place in the stream.
-- Index: users_external_id_key, score_events_pk, held_actions_pk, rejected_events_pk
WITH given AS (
    SELECT u.id, c.* FROM unnest(
        %(users)s::TEXT[], %(actions)s::TEXT[], %(epochs)s::BIGINT[], %(seqs)s::BIGINT[]
    ) AS c (user_id, action_id, epoch, seq)
    JOIN users u ON u.external_id = c.user_id
)
SELECT g.user_id, g.action_id, NULL::BIGINT, NULL::BIGINT FROM given g
JOIN score_events e ON e.board = %(board)s AND e.user_id = g.id AND e.action_id = g.action_id
UNION ALL
SELECT g.user_id, g.action_id, NULL, NULL FROM given g
JOIN held_actions h ON h.board = %(board)s AND h.user_id = g.id AND h.action_id = g.action_id
UNION ALL
SELECT g.user_id, g.action_id, g.epoch, g.seq FROM given g
JOIN rejected_events r ON r.board = %(board)s AND r.user_id = g.id AND r.action_id = g.action_id
    AND r.epoch = g.epoch AND r.seq = g.seq
