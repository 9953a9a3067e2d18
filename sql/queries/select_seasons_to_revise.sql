-- List the frozen seasons whose standings are to be computed again.
-- Index: season_revisions_open, seasons_pk
SELECT DISTINCT r.board, r.season
FROM season_revisions r JOIN seasons s ON s.board = r.board AND s.season = r.season
WHERE r.done_at IS NULL AND s.frozen_at IS NOT NULL
ORDER BY 1, 2
LIMIT %(limit)s
