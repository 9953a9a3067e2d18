-- List users whose score in an ended season is not the sum of their ledger rows of it or their kept sum, or whose actions are not their number.
-- Index: none for the ledger: one pass for all seasons; scores_pk for each season
-- Without a season: all that began before the newest one of the start of the verification.
WITH ended AS (
    SELECT f.season, f.board || '@' || f.season AS name FROM seasons f
    WHERE f.board = %(board)s
      AND CASE WHEN %(season)s::TEXT IS NOT NULL THEN f.season = %(season)s
          ELSE f.starts_at < (SELECT n.starts_at FROM seasons n WHERE n.board = %(board)s AND n.season = %(newest)s) END
)
SELECT coalesce(s.season, l.season), u.external_id, s.score, l.total, s.actions, l.rows
FROM (
    SELECT e.season, e.user_id, sum(e.delta)::BIGINT AS total, count(*) AS rows FROM score_events e
    WHERE e.board = %(board)s AND e.season IN (SELECT d.season FROM ended d)
    GROUP BY e.season, e.user_id
    UNION ALL -- a detached ledger has sums only, another one has none
    SELECT k.season, k.user_id, k.delta, k.actions FROM score_sums k
    WHERE k.board = %(board)s AND k.season IN (SELECT d.season FROM ended d)
) l
FULL JOIN (
    SELECT d.season, c.user_id, c.score, c.actions FROM ended d JOIN scores c ON c.board = d.name
) s ON s.season = l.season AND s.user_id = l.user_id
JOIN users u ON u.id = coalesce(s.user_id, l.user_id)
WHERE (s.score, s.actions) IS DISTINCT FROM (l.total, l.rows)
ORDER BY 1, 2
LIMIT %(limit)s
