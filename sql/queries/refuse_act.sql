-- Record that an act is refused, unless it has counted; it can then never be applied.
-- Index: acts_pk, score_events_pk, ledger_partitions_pk
UPDATE acts a SET refused_at = now()
WHERE id = %(id)s AND refused_at IS NULL
  AND NOT EXISTS (
      SELECT FROM score_events e
      WHERE e.board = a.board AND e.user_id = a.user_id AND e.action_id = 'act:' || a.id
  )
  AND NOT EXISTS (
      SELECT FROM ledger_partitions p WHERE p.board = a.board AND p.detached_at IS NOT NULL
  )
