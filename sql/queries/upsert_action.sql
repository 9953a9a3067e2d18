-- Set the points of a kind; a disabled kind is enabled again.
-- Index: actions_pk
INSERT INTO actions AS a (kind, points) VALUES (%(kind)s, %(points)s)
ON CONFLICT (kind) DO UPDATE SET points = excluded.points, enabled = TRUE, updated_at = now()
