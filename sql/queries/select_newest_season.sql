-- Read the season of a board that began last.
-- Index: seasons_start
SELECT season, extract(epoch FROM starts_at)::BIGINT, extract(epoch FROM ends_at)::BIGINT
FROM seasons WHERE board = %(board)s ORDER BY starts_at DESC LIMIT 1
