-- List all kinds of actions, including disabled ones.
-- Index: none, a handful of rows
SELECT kind, points, enabled, updated_at, scope, boards, needs_proof FROM actions ORDER BY kind
