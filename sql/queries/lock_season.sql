-- Lock a season for a revision; no row if it is not final, or if another process revises it.
-- Index: seasons_pk
-- A statement of its own: the snapshot of the revision is then newer than what was committed before the lock.
SELECT FROM seasons
WHERE board = %(board)s AND season = %(season)s AND frozen_at IS NOT NULL
FOR NO KEY UPDATE SKIP LOCKED
