-- Count what a board's ledger may still get: dead letters, late duplicates that Redis counts, acts that are not applied.
-- Index: dead_events_open, rejected_events_due, none for acts; score_events_pk for each of the board's
SELECT
    (SELECT count(*) FROM dead_events WHERE board = %(board)s AND resolved_at IS NULL),
    (SELECT count(*) FROM rejected_events
     WHERE board = %(board)s AND reason <> 'correction' AND corrected_at IS NULL),
    (SELECT count(*) FROM acts a
     WHERE a.board = %(board)s AND a.refused_at IS NULL AND a.kind NOT IN ('ban', 'unban')
       AND NOT EXISTS (
           SELECT FROM score_events e
           WHERE e.board = a.board AND e.user_id = a.user_id AND e.action_id = 'act:' || a.id
       ))
