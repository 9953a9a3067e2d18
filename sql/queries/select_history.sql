-- Read the latest counted actions of a user on a board, before a place in the ledger if one is given.
-- Index: users_external_id_key, score_events_pk
-- The rows of one user are read and sorted: an index in this order would cost every insert
-- (docs/decisions/0154).
SELECT action_id, delta, score_after, occurred_at, epoch, seq FROM score_events
WHERE board = %(board)s
  AND user_id = (SELECT id FROM users WHERE external_id = %(user_id)s)
  AND (%(at)s::TIMESTAMPTZ IS NULL
       OR (occurred_at, epoch, seq) < (%(at)s::TIMESTAMPTZ, %(epoch)s::BIGINT, %(seq)s::BIGINT))
ORDER BY occurred_at DESC, epoch DESC, seq DESC
LIMIT %(limit)s
