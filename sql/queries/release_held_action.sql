-- Note the act that releases an action, unless it is released or voided already. A concurrent change is waited for.
-- Index: held_actions_id_key, acts_pk, acts_undoes
UPDATE held_actions h SET act_id = %(act_id)s
WHERE h.id = %(id)s
  AND h.voided_at IS NULL
  AND (
      h.act_id IS NULL
      OR EXISTS (
          SELECT FROM acts a
          WHERE a.id = h.act_id AND (
              a.refused_at IS NOT NULL
              OR EXISTS (SELECT FROM acts x WHERE x.undoes = a.id AND x.refused_at IS NULL)
          )
      )
  )
