-- List the partitions of boards: how many their layouts have, and further ones that were ever opened.
-- Index: boards_pk, flush_state_pk
SELECT b.board, b.partitions, ARRAY(
    SELECT f.part FROM flush_state f WHERE f.board = b.board AND f.part >= b.partitions ORDER BY f.part
) FROM boards b WHERE b.board = ANY(%(boards)s) ORDER BY b.board
