-- Export the ranking of a board: best score first, then first to reach it; without banned users.
-- Index: scores_pk for the board, bans_pk, then a sort; for operators, never for requests
SELECT row_number() OVER (
           ORDER BY
               CASE WHEN (SELECT score_order FROM boards WHERE board = %(board)s) = 'lowest'
                   THEN s.score ELSE -s.score END,
               s.reached_at, s.last_seq, s.user_id
       ) AS "rank",
       u.external_id AS "userId",
       s.score AS "score",
       s.reached_at AS "reachedAt"
FROM scores s JOIN users u ON u.id = s.user_id
WHERE s.board = %(scores)s
    AND NOT EXISTS (SELECT FROM bans b WHERE b.board = %(board)s AND b.user_id = s.user_id)
ORDER BY 1
