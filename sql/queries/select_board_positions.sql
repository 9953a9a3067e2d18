-- List the committed positions of the partitions of a page of boards.
-- Index: boards_pk, flush_state_pk
SELECT b.board, b.partitions, f.parts, f.epochs, f.seqs
FROM (
    SELECT board, partitions FROM boards WHERE board > %(after)s AND state <> 'deleted'
    ORDER BY board LIMIT %(limit)s
) b
CROSS JOIN LATERAL (
    SELECT coalesce(array_agg(part), '{}') AS parts, coalesce(array_agg(epoch), '{}') AS epochs,
        coalesce(array_agg(seq), '{}') AS seqs
    FROM flush_state WHERE flush_state.board = b.board
) f
ORDER BY b.board
