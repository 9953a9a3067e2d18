-- List the catalogue with what is disabled.
-- Index: none, a handful of rows
SELECT kind, points, enabled, updated_at FROM actions ORDER BY kind
