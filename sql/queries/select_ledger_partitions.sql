-- List the boards with a partition of their own, with the size of their rows in bytes, and what was kept of a detached one.
-- Index: none, a row for each of these boards; pg_class_relname_nsp_index, score_sums_pk
-- An operator has no right on the schema `detached`, so the table is not named but looked up in the catalogue.
SELECT p.board, p.separated_at, p.detached_at,
       coalesce((
           SELECT pg_total_relation_size(c.oid)
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
           WHERE c.relname = 'score_events_b_' || p.board || ':rows'
             AND n.nspname = CASE WHEN p.detached_at IS NULL THEN 'public' ELSE 'detached' END
       ), 0),
       (SELECT count(DISTINCT s.user_id) FROM score_sums s WHERE s.board = p.board),
       (SELECT coalesce(sum(s.actions), 0)::BIGINT FROM score_sums s WHERE s.board = p.board)
FROM ledger_partitions p
WHERE %(board)s::TEXT IS NULL OR p.board = %(board)s
ORDER BY p.board
