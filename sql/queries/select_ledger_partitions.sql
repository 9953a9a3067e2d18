-- List the boards with a partition of their own, with the size of their rows in bytes, and what was kept of a detached one.
-- Index: none, a row for each of these boards; score_sums_pk
SELECT p.board, p.separated_at, p.detached_at,
       coalesce(pg_total_relation_size(to_regclass(format(
           '%%I.%%I', CASE WHEN p.detached_at IS NULL THEN 'public' ELSE 'detached' END,
           'score_events_b_' || p.board || '_0'
       ))), 0),
       (SELECT count(DISTINCT s.user_id) FROM score_sums s WHERE s.board = p.board),
       (SELECT coalesce(sum(s.actions), 0)::BIGINT FROM score_sums s WHERE s.board = p.board)
FROM ledger_partitions p
WHERE %(board)s::TEXT IS NULL OR p.board = %(board)s
ORDER BY p.board
