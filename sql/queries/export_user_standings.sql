-- Export the final standings of a user in ended seasons.
-- Index: users_external_id_key, then season_standings_user for each season
SELECT p.board AS "board",
       p.season AS "season",
       p.rank AS "rank",
       p.score AS "score"
FROM users u CROSS JOIN seasons f
JOIN season_standings p ON p.board = f.board AND p.season = f.season AND p.user_id = u.id
WHERE u.external_id = %(user)s
ORDER BY 1, 2
