-- List the seasons that every partition of their board has left, or whose board was deleted, and whose standings are not frozen yet.
-- Index: seasons_open, boards_pk, flush_state_pk
SELECT s.board, s.season
FROM seasons s JOIN boards b ON b.board = s.board
WHERE s.frozen_at IS NULL
  AND (
      b.state = 'deleted'
      OR EXISTS (SELECT FROM flush_state f WHERE f.board = s.board)
      AND NOT EXISTS (
          SELECT FROM flush_state f
          WHERE f.board = s.board AND f.part < b.partitions
            AND coalesce(nullif(split_part(f.season, ':', 2), '')::BIGINT, 0) <= extract(epoch FROM s.starts_at)
      )
  )
ORDER BY s.board, s.starts_at
LIMIT %(limit)s
