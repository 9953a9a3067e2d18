-- List rows of the audit log that match every given value, newest first.
-- Index: audit_log_seq
SELECT seq, at, actor, action, board, detail, hash FROM audit_log
WHERE (%(since)s::TIMESTAMPTZ IS NULL OR at >= %(since)s)
    AND (%(until)s::TIMESTAMPTZ IS NULL OR at < %(until)s)
    AND (%(actor)s::TEXT IS NULL OR actor = %(actor)s)
    AND (%(action)s::TEXT IS NULL OR action = %(action)s)
    AND (%(board)s::TEXT IS NULL OR board = %(board)s)
ORDER BY seq DESC
LIMIT %(limit)s
