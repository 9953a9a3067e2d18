-- Record the resolution of a dead letter, who decided it and why.
-- Index: dead_events_id_key
UPDATE dead_events
SET resolved_at = now(), resolution = %(resolution)s, resolved_by = %(actor)s,
    resolved_reason = %(reason)s
WHERE id = %(id)s
