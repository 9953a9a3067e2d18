-- List held actions in order of ids, with their states.
-- Index: held_actions_id_key, held_actions_pk or held_actions_open; acts_pk, acts_undoes, score_events_pk, seasons_start
-- and ledger_partitions_pk for each row
-- An action is released when the ledger has the act that released it, or had it before it was detached; it is held again if that was refused or undone.
SELECT * FROM (
    SELECT h.id, h.board, u.external_id, h.action_id, h.delta, h.score, h.limit_kind, h.occurred_at,
           CASE
               WHEN h.voided_at IS NOT NULL THEN 'voided'
               WHEN a.id IS NULL OR a.refused_at IS NOT NULL
                    OR EXISTS (SELECT FROM acts x WHERE x.undoes = a.id AND x.refused_at IS NULL) THEN 'held'
               WHEN EXISTS (
                   SELECT FROM score_events e
                   WHERE e.board = h.board AND e.user_id = h.user_id AND e.action_id = 'act:' || a.id
               ) OR EXISTS (
                   SELECT FROM ledger_partitions p WHERE p.board = h.board AND p.detached_at IS NOT NULL
               ) THEN 'released'
               ELSE 'pending'
           END AS state,
           h.act_id, h.voided_by, h.voided_reason,
           coalesce(h.season, (
               SELECT s.season FROM seasons s
               WHERE s.board = h.board AND s.starts_at <= h.occurred_at AND h.occurred_at < s.ends_at
               ORDER BY s.starts_at DESC LIMIT 1
           )) AS season
    FROM held_actions h JOIN users u ON u.id = h.user_id LEFT JOIN acts a ON a.id = h.act_id
    WHERE (%(ids)s::BIGINT[] IS NULL OR h.id = ANY(%(ids)s))
      AND (%(after)s::BIGINT IS NULL OR h.id > %(after)s)
      AND (%(board)s::TEXT IS NULL OR h.board = %(board)s)
      AND (%(user_id)s::TEXT IS NULL OR u.external_id = %(user_id)s)
      AND (%(action_id)s::TEXT IS NULL OR h.action_id = %(action_id)s)
      AND (%(limit_kind)s::TEXT IS NULL OR h.limit_kind = %(limit_kind)s)
      AND (%(since)s::TIMESTAMPTZ IS NULL OR h.occurred_at >= %(since)s)
      AND (%(state)s::TEXT IS DISTINCT FROM 'held' OR (
          h.voided_at IS NULL AND EXISTS (SELECT FROM boards b WHERE b.board = h.board AND b.state <> 'deleted')
      ))
) found
WHERE %(state)s::TEXT IS NULL OR found.state = %(state)s
ORDER BY id
LIMIT %(limit)s
