-- List the actions that the ledger has at the given places in the stream.
-- Index: users_external_id_key, score_events_pk
SELECT c.user_id, c.action_id, c.epoch, c.seq
FROM unnest(%(users)s::TEXT[], %(actions)s::TEXT[], %(epochs)s::BIGINT[], %(seqs)s::BIGINT[])
    AS c (user_id, action_id, epoch, seq)
JOIN users u ON u.external_id = c.user_id
JOIN score_events e ON e.board = %(board)s AND e.user_id = u.id AND e.action_id = c.action_id
WHERE (e.epoch, e.seq) = (c.epoch, c.seq)
