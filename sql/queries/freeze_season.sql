-- Freeze the standings of a season: best score first, then first to reach it; without banned users. Return 1 if it was not frozen.
-- Index: seasons_pk; season_revisions_open, scores_pk for the season, bans_pk, then a sort: once for each season
WITH due AS (
    UPDATE seasons SET frozen_at = now()
    WHERE (board, season) IN (
        SELECT board, season FROM seasons
        WHERE board = %(board)s AND season = %(season)s AND frozen_at IS NULL
        FOR UPDATE SKIP LOCKED -- another process freezes it
    )
    RETURNING board, season
), asked AS ( -- what asked for a revision before is in the scores
    UPDATE season_revisions r SET done_at = now() FROM due d
    WHERE r.board = d.board AND r.season = d.season AND r.done_at IS NULL
), ranked AS (
    INSERT INTO season_standings (board, season, rank, user_id, score)
    SELECT d.board, d.season,
           row_number() OVER (
               ORDER BY
                   CASE WHEN (SELECT score_order FROM boards WHERE board = %(board)s) = 'lowest'
                       THEN s.score ELSE -s.score END,
                   s.reached_at, s.last_seq, s.user_id
           ),
           s.user_id, s.score
    FROM due d JOIN scores s ON s.board = %(name)s
    WHERE NOT EXISTS (SELECT FROM bans b WHERE b.board = d.board AND b.user_id = s.user_id)
)
SELECT count(*) FROM due
