-- Close a user's late duplicates that a correction included: those committed before it.
-- Index: users_external_id_key, rejected_events_due
UPDATE rejected_events SET corrected_at = now()
WHERE board = %(board)s AND part = %(part)s AND user_id = (SELECT id FROM users WHERE external_id = %(user_id)s)
  AND corrected_at IS NULL AND reason <> 'correction'
  AND (epoch, seq) <= (%(epoch)s::BIGINT, %(seq)s::BIGINT)
