-- Count the users and seasons whose rows in the ledger do not add up to their kept sums.
-- Index: none, one pass over the partition of the board and its sums
SELECT count(*) FROM (
    SELECT user_id, coalesce(season, '') AS season, sum(delta) AS delta, count(*) AS actions
    FROM score_events WHERE board = %(board)s GROUP BY 1, 2
) l
FULL JOIN (SELECT user_id, season, delta, actions FROM score_sums WHERE board = %(board)s) k
    ON (k.user_id, k.season) = (l.user_id, l.season)
WHERE (l.delta, l.actions) IS DISTINCT FROM (k.delta, k.actions)
