-- Read the audit log with the text that each row's hash covers.
-- Index: audit_log_seq
SELECT seq, previous, hash, jsonb_build_array(
    seq, previous, id, (extract(epoch FROM at) * 1000000)::BIGINT, actor, action, board, detail
)::TEXT
FROM audit_log
ORDER BY seq
