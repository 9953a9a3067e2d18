-- Set what a kind of action is worth where the catalogue does not have it.
-- Index: actions_pk
INSERT INTO actions (kind, points) VALUES (%(kind)s, %(points)s)
ON CONFLICT (kind) DO NOTHING
