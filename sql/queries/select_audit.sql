-- List rows of the audit log that match every given value, newest first.
-- Index: audit_log_seq
-- action is a whole action or its first word; last is the greatest number; limit NULL lists all.
SELECT seq, at, actor, action, board, detail, hash FROM audit_log
WHERE (%(since)s::TIMESTAMPTZ IS NULL OR at >= %(since)s)
    AND (%(until)s::TIMESTAMPTZ IS NULL OR at < %(until)s)
    AND (%(actor)s::TEXT IS NULL OR actor = %(actor)s)
    AND (%(action)s::TEXT IS NULL OR action = %(action)s OR starts_with(action, %(action)s || ' '))
    AND (%(board)s::TEXT IS NULL OR board = %(board)s)
    AND (%(user)s::TEXT IS NULL OR detail->>'user' = %(user)s)
    AND (%(last)s::BIGINT IS NULL OR seq <= %(last)s)
ORDER BY seq DESC
LIMIT %(limit)s
