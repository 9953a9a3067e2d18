-- List actions whose score is not the previous score plus their points, in the newest epoch of a partition.
-- Index: none, one pass over the ledger
-- Users with rejected actions or dead letters are left out: Redis counted those actions.
SELECT u.external_id, c.seq, c.before, c.delta, c.score_after
FROM (
    SELECT user_id, seq, delta, score_after,
           lag(score_after) OVER (PARTITION BY user_id, season ORDER BY seq) AS before
    FROM score_events
    WHERE board = %(board)s AND part = %(part)s AND epoch = %(epoch)s
) c
JOIN users u ON u.id = c.user_id
WHERE c.before + c.delta <> c.score_after
  AND u.external_id <> ALL(%(excluded)s)
  AND NOT EXISTS (
      SELECT FROM rejected_events r WHERE r.board = %(board)s AND r.user_id = c.user_id
  )
ORDER BY c.seq
LIMIT %(limit)s
