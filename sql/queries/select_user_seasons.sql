-- List the ended seasons in which a user has a score, latest first, with its rank in the final standings; null: banned then.
-- Index: users_external_id_key, then scores_pk and season_standings_user for each season
SELECT f.board, f.season, coalesce(p.score, s.score), p.rank
FROM users u CROSS JOIN seasons f
JOIN scores s ON s.board = concat_ws('@', f.board, f.season) AND s.user_id = u.id
LEFT JOIN season_standings p ON p.board = f.board AND p.season = f.season AND p.user_id = u.id
WHERE u.external_id = %(user_id)s AND f.frozen_at IS NOT NULL
ORDER BY f.starts_at DESC, f.board
LIMIT %(limit)s
