-- Return whether each table has rows of a board: users' scores, ledger, rejected and dead events.
-- Index: scores_pk, score_events_pk, rejected_events_pk, dead_events_pk
SELECT
    EXISTS (SELECT FROM scores WHERE board = %(board)s),
    EXISTS (SELECT FROM score_events WHERE board = %(board)s),
    EXISTS (SELECT FROM rejected_events WHERE board = %(board)s),
    EXISTS (SELECT FROM dead_events WHERE board = %(board)s)
