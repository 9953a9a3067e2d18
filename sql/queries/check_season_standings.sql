-- List users whose final standing is not the one that follows from the scores of the season. NULL: no standing.
-- Index: season_revisions_open, season_standings_pk and scores_pk for each season, season_standings_user, acts_user, then a sort
-- Who was banned when the season was frozen has none. A season that is to be revised is left out for ten minutes.
WITH frozen AS (
    SELECT f.board, f.season, f.frozen_at, f.board || '@' || f.season AS name, b.score_order
    FROM seasons f JOIN boards b ON b.board = f.board
    WHERE f.board = %(board)s AND f.frozen_at IS NOT NULL AND (%(season)s::TEXT IS NULL OR f.season = %(season)s)
      AND NOT EXISTS (
          SELECT FROM season_revisions r
          WHERE r.board = f.board AND r.season = f.season AND r.done_at IS NULL
            AND r.asked_at > now() - INTERVAL '10 minutes'
      )
), due AS (
    SELECT f.season, s.user_id, s.score,
           row_number() OVER (
               PARTITION BY f.season
               ORDER BY CASE WHEN f.score_order = 'lowest' THEN s.score ELSE -s.score END,
                   s.reached_at, s.last_seq, s.user_id
           ) AS rank
    FROM frozen f JOIN scores s ON s.board = f.name
    WHERE EXISTS (
        SELECT FROM season_standings t WHERE t.board = f.board AND t.season = f.season AND t.user_id = s.user_id
    ) OR coalesce((
        SELECT a.kind FROM acts a
        WHERE a.user_id = s.user_id AND a.board = f.board AND a.kind IN ('ban', 'unban') AND a.at <= f.frozen_at
        ORDER BY a.at DESC LIMIT 1
    ), 'unban') = 'unban'
), held AS (
    SELECT t.season, t.user_id, t.rank, t.score
    FROM frozen f JOIN season_standings t ON t.board = f.board AND t.season = f.season
)
SELECT coalesce(h.season, d.season), u.external_id, h.rank, h.score, d.rank, d.score
FROM held h FULL JOIN due d ON d.season = h.season AND d.user_id = h.user_id
JOIN users u ON u.id = coalesce(h.user_id, d.user_id)
WHERE (h.rank, h.score) IS DISTINCT FROM (d.rank, d.score)
ORDER BY 1, coalesce(d.rank, h.rank), 2
LIMIT %(limit)s
