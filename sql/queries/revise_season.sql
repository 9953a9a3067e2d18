-- Compute the standings of a frozen season again from its scores; return how many users they have, nothing if it is not frozen.
-- Index: season_revisions_open, seasons_pk, season_standings_pk, scores_pk for the season, acts_user for each user who was not in them, then a sort
-- Users who were banned when it was frozen stay out. The rows are deleted before the first is inserted, because the order
-- of all of them is computed from what was deleted.
WITH asked AS (
    UPDATE season_revisions SET done_at = now()
    WHERE id IN (
        SELECT id FROM season_revisions
        WHERE board = %(board)s AND season = %(season)s AND done_at IS NULL
        FOR UPDATE SKIP LOCKED -- another process revises it
    )
    RETURNING id
), due AS (
    UPDATE seasons SET revisions = revisions + 1, revised_at = now()
    WHERE board = %(board)s AND season = %(season)s AND frozen_at IS NOT NULL
      AND (%(is_forced)s::BOOLEAN OR EXISTS (SELECT FROM asked))
    RETURNING board, season, frozen_at
), removed AS (
    DELETE FROM season_standings t USING due d
    WHERE t.board = d.board AND t.season = d.season
    RETURNING t.user_id
), placed AS (
    SELECT user_id FROM removed
    UNION
    SELECT s.user_id FROM due d JOIN scores s ON s.board = %(name)s
    WHERE coalesce((
        SELECT a.kind FROM acts a
        WHERE a.user_id = s.user_id AND a.board = d.board AND a.kind IN ('ban', 'unban') AND a.at <= d.frozen_at
        ORDER BY a.at DESC LIMIT 1
    ), 'unban') = 'unban'
), inserted AS (
    INSERT INTO season_standings (board, season, rank, user_id, score)
    SELECT d.board, d.season,
           row_number() OVER (
               ORDER BY
                   CASE WHEN (SELECT score_order FROM boards WHERE board = %(board)s) = 'lowest'
                       THEN s.score ELSE -s.score END,
                   s.reached_at, s.last_seq, s.user_id
           ),
           s.user_id, s.score
    FROM due d CROSS JOIN placed p JOIN scores s ON s.board = %(name)s AND s.user_id = p.user_id
    RETURNING user_id
)
SELECT (SELECT count(*) FROM inserted) FROM due
