-- Set the properties of a kind that are not NULL; a disabled kind is enabled again.
-- Index: actions_pk
INSERT INTO actions AS a (kind, points, scope, boards, needs_proof)
VALUES (
    %(kind)s, %(points)s, COALESCE(%(scope)s::TEXT, ''), COALESCE(%(boards)s::TEXT[], '{}'),
    COALESCE(%(needs_proof)s::BOOLEAN, FALSE)
)
ON CONFLICT (kind) DO UPDATE SET
    points = excluded.points,
    enabled = TRUE,
    updated_at = now(),
    scope = COALESCE(%(scope)s::TEXT, a.scope),
    boards = COALESCE(%(boards)s::TEXT[], a.boards),
    needs_proof = COALESCE(%(needs_proof)s::BOOLEAN, a.needs_proof)
RETURNING a.kind, a.points, a.enabled, a.updated_at, a.scope, a.boards, a.needs_proof
