-- List the counted actions of a user, one or those of a time span, with the act that voids each.
-- Index: users_external_id_key, score_events_pk, act_actions_pk, acts_undoes
SELECT e.action_id, e.delta,
       (SELECT v.act_id FROM act_actions v JOIN acts a ON a.id = v.act_id
        WHERE v.board = e.board AND v.user_id = e.user_id AND v.action_id = e.action_id
          AND a.refused_at IS NULL
          AND NOT EXISTS (SELECT FROM acts x WHERE x.undoes = a.id AND x.refused_at IS NULL)
        LIMIT 1),
       EXISTS (SELECT FROM acts a WHERE a.board = e.board AND a.user_id = e.user_id AND 'act:' || a.id = e.action_id)
FROM score_events e
WHERE e.board = %(board)s AND e.user_id = (SELECT id FROM users WHERE external_id = %(user_id)s)
  AND e.season IS NOT DISTINCT FROM %(season)s
  AND (%(action_id)s::TEXT IS NULL OR e.action_id = %(action_id)s)
  AND (%(since)s::TIMESTAMPTZ IS NULL OR e.occurred_at >= %(since)s)
  AND (%(until)s::TIMESTAMPTZ IS NULL OR e.occurred_at < %(until)s)
ORDER BY e.occurred_at, e.action_id
LIMIT %(limit)s
