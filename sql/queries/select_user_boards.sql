-- List the boards on which a user has a score, in any season, or is banned: current score, and the act of the ban.
-- Index: users_external_id_key, then scores_pk and bans_pk for each board and season
-- The scores of a season have a row of their own in boards, which names its board.
WITH found AS (
    SELECT coalesce(k.season_of, k.board) AS board
    FROM users u CROSS JOIN boards k JOIN scores s ON s.board = k.board AND s.user_id = u.id
    WHERE u.external_id = %(user_id)s
    UNION
    SELECT x.board FROM users u JOIN bans x ON x.user_id = u.id WHERE u.external_id = %(user_id)s
)
SELECT b.board, s.score, x.act_id
FROM found f
JOIN boards b ON b.board = f.board
JOIN users u ON u.external_id = %(user_id)s
LEFT JOIN LATERAL (
    SELECT t.season FROM seasons t WHERE t.board = b.board ORDER BY t.starts_at DESC LIMIT 1
) newest ON TRUE
LEFT JOIN scores s ON s.board = concat_ws('@', b.board, newest.season) AND s.user_id = u.id
LEFT JOIN bans x ON x.board = b.board AND x.user_id = u.id
WHERE b.state <> 'deleted'
ORDER BY b.board
LIMIT %(limit)s
