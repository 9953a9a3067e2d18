-- List acts, newest first, with their states. An act that changes a score is applied when the ledger has its row, or had it before it was detached.
-- Index: acts_pk, acts_user or acts_at; score_events_pk, ledger_partitions_pk and acts_undoes for each row
SELECT * FROM (
    SELECT a.id, a.at, a.board, u.external_id, a.kind, a.delta, a.actor, a.reason, a.detail, a.undoes,
           (SELECT x.id FROM acts x WHERE x.undoes = a.id AND x.refused_at IS NULL) AS undone_by,
           CASE
               WHEN a.refused_at IS NOT NULL THEN 'refused'
               WHEN a.kind IN ('ban', 'unban') OR EXISTS (
                   SELECT FROM score_events e
                   WHERE e.board = a.board AND e.user_id = a.user_id AND e.action_id = 'act:' || a.id
               ) OR EXISTS (
                   SELECT FROM ledger_partitions p WHERE p.board = a.board AND p.detached_at IS NOT NULL
               ) THEN 'applied'
               ELSE 'pending'
           END AS state
    FROM acts a JOIN users u ON u.id = a.user_id
    WHERE (%(id)s::TEXT IS NULL OR a.id = %(id)s)
      AND (%(board)s::TEXT IS NULL OR a.board = %(board)s)
      AND (%(user_id)s::TEXT IS NULL OR u.external_id = %(user_id)s)
      AND (%(since)s::TIMESTAMPTZ IS NULL OR a.at >= %(since)s)
      AND (%(before_at)s::TIMESTAMPTZ IS NULL OR a.at <= %(before_at)s)
      AND (%(before_at)s::TIMESTAMPTZ IS NULL OR a.at < %(before_at)s OR a.id > %(before_id)s::TEXT)
) found
WHERE %(state)s::TEXT IS NULL OR found.state = %(state)s
ORDER BY at DESC, id
LIMIT %(limit)s
