-- Count the recorded changes of the newest epoch of a partition, and the seqs they span.
-- Index: none, one pass over the ledger
WITH known AS (
    SELECT seq FROM score_events
    WHERE board = %(board)s AND part = %(part)s AND epoch = %(epoch)s
    UNION
    SELECT seq FROM rejected_events
    WHERE board = %(board)s AND part = %(part)s AND epoch = %(epoch)s AND reason <> 'resolved'
    UNION
    SELECT seq FROM held_actions
    WHERE board = %(board)s AND part = %(part)s AND epoch = %(epoch)s
    UNION
    SELECT seq FROM season_turns
    WHERE board = %(board)s AND part = %(part)s AND epoch = %(epoch)s
),
bounds AS (SELECT min(seq) AS first FROM known),
every AS (
    SELECT seq FROM known
    UNION
    SELECT d.seq FROM dead_events d, bounds
    WHERE d.board = %(board)s AND d.part = %(part)s AND d.seq BETWEEN bounds.first AND %(seq)s
)
SELECT count(*), coalesce(min(seq), 0), coalesce(max(seq), 0) FROM every
-- A detached ledger has no rows, and the other tables have some of the seqs only.
WHERE NOT EXISTS (SELECT FROM ledger_partitions WHERE board = %(board)s AND detached_at IS NOT NULL)
