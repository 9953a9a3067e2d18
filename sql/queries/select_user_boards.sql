-- List the boards on which a user has a score or is banned: score, and the act of the ban.
-- Index: users_external_id_key, then scores_pk and bans_pk for each board
SELECT b.board, s.score, x.act_id
FROM users u
CROSS JOIN boards b
LEFT JOIN scores s ON s.board = b.board AND s.user_id = u.id
LEFT JOIN bans x ON x.board = b.board AND x.user_id = u.id
WHERE u.external_id = %(user_id)s AND b.state <> 'deleted'
    AND (s.user_id IS NOT NULL OR x.user_id IS NOT NULL)
ORDER BY b.board
LIMIT %(limit)s
