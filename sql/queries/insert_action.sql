-- Add a kind of action unless the catalogue has it.
-- Index: actions_pk
INSERT INTO actions (kind, points, scope, boards, needs_proof)
VALUES (
    %(kind)s, %(points)s, COALESCE(%(scope)s::TEXT, ''), COALESCE(%(boards)s::TEXT[], '{}'),
    COALESCE(%(needs_proof)s::BOOLEAN, FALSE)
)
ON CONFLICT (kind) DO NOTHING
RETURNING kind, points, enabled, updated_at, scope, boards, needs_proof
