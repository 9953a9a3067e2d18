-- Record an administrative change, in the transaction of the change itself.
-- Index: audit_log_pk
INSERT INTO audit_log (actor, action, board, detail)
VALUES (%(actor)s, %(action)s, %(board)s, %(detail)s)
