-- List the points of each kind, 0 where the kind is disabled.
-- Index: none, a handful of rows
SELECT kind, CASE WHEN enabled THEN points ELSE 0 END FROM actions ORDER BY kind
