-- List users whose score is not the sum of their ledger rows or kept sums, or whose actions are not their number.
-- Index: none for all users: one pass over ledger and scores; else users_external_id_key
-- and the primary keys
WITH chosen AS (SELECT array_agg(id) AS ids FROM users WHERE external_id = ANY(%(users)s::TEXT[]))
SELECT u.external_id, s.score, l.total, s.actions, l.rows
FROM (
    SELECT user_id, sum(delta)::BIGINT AS total, count(*) AS rows FROM score_events
    WHERE board = %(board)s AND season IS NOT DISTINCT FROM %(season)s
        AND (%(users)s::TEXT[] IS NULL OR user_id = ANY((SELECT ids FROM chosen)::UUID[]))
    GROUP BY user_id
    UNION ALL -- a detached ledger has sums only, another one has none
    SELECT user_id, delta, actions FROM score_sums
    WHERE board = %(board)s AND season = coalesce(%(season)s, '')
        AND (%(users)s::TEXT[] IS NULL OR user_id = ANY((SELECT ids FROM chosen)::UUID[]))
) l
FULL JOIN (
    SELECT user_id, score, actions FROM scores
    WHERE board = %(scores)s AND (%(users)s::TEXT[] IS NULL OR user_id = ANY((SELECT ids FROM chosen)::UUID[]))
) s ON s.user_id = l.user_id
JOIN users u ON u.id = coalesce(s.user_id, l.user_id)
WHERE (s.score, s.actions) IS DISTINCT FROM (l.total, l.rows)
ORDER BY u.external_id
LIMIT %(limit)s
