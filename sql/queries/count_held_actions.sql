-- Count the held actions that wait for a decision, and return the age of the oldest in seconds; 0 without one.
-- Index: held_actions_open; boards_pk, acts_pk and acts_undoes for each that was released
-- Those of deleted boards need none.
SELECT count(*), coalesce(greatest(extract(epoch FROM now() - min(h.occurred_at)), 0), 0)::FLOAT8
FROM held_actions h JOIN boards b ON b.board = h.board AND b.state <> 'deleted'
WHERE h.voided_at IS NULL
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
