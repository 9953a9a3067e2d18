-- Sum the late duplicates of users that the flusher has not corrected yet.
-- Index: rejected_events_due
SELECT u.external_id, sum(r.delta)
FROM rejected_events r JOIN users u ON u.id = r.user_id
WHERE r.board = %(board)s AND r.part = %(part)s AND u.external_id = ANY(%(users)s)
  AND r.corrected_at IS NULL AND r.reason <> 'correction'
GROUP BY u.external_id
