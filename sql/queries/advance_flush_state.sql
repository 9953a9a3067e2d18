-- Advance a partition's position; it never decreases.
-- Index: flush_state_pk
UPDATE flush_state
SET seq = %(seq)s, stream_id = %(stream_id)s, season = %(season)s,
    clock = greatest(clock, least(%(occurred_at)s, now() + INTERVAL '1 minute'))
WHERE board = %(board)s AND part = %(part)s AND seq < %(seq)s
