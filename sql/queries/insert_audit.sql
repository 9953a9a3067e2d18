-- Record an administrative change, in the transaction of the change itself.
-- Index: audit_log_pk, audit_log_seq
INSERT INTO audit_log (actor, action, board, detail)
VALUES (%(actor)s, %(action)s, %(board)s, %(detail)s)
RETURNING seq, hash
