-- Count the unresolved dead letters of each board.
-- Index: dead_events_open
SELECT b.board, (
    SELECT count(*) FROM dead_events d WHERE d.board = b.board AND d.resolved_at IS NULL
) FROM boards b
