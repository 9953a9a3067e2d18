-- Add a kind of action unless the catalogue has it.
-- Index: actions_pk
INSERT INTO actions (kind, points) VALUES (%(kind)s, %(points)s)
ON CONFLICT (kind) DO NOTHING
