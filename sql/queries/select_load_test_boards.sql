-- List the boards for load tests: their last creation in the audit log was as one.
-- Index: none, a few rows of the audit log are about boards for load tests
SELECT board FROM boards
WHERE starts_with(board, %(prefix)s) AND (
    SELECT action FROM audit_log
    WHERE audit_log.board = boards.board AND action IN ('board create', %(created)s)
    ORDER BY seq DESC LIMIT 1
) = %(created)s
ORDER BY board
