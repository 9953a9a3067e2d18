-- Close the open corrections of partitions that a reseed has rebuilt from PostgreSQL.
-- Index: rejected_events_due
UPDATE rejected_events SET corrected_at = now()
WHERE board = %(board)s AND part = ANY(%(parts)s)
  AND corrected_at IS NULL AND reason <> 'correction'
