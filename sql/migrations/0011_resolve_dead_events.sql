-- depends: 0010_create_user_id_of
-- A parked entry is applied or discarded by an operator; the id names it on the command line.
ALTER TABLE dead_events
    ADD COLUMN IF NOT EXISTS id BIGINT GENERATED ALWAYS AS IDENTITY
        CONSTRAINT dead_events_id_key UNIQUE,
    ADD COLUMN IF NOT EXISTS resolution TEXT CONSTRAINT dead_events_resolution
        CHECK (resolution IN ('applied', 'duplicate', 'discarded')),
    ADD COLUMN IF NOT EXISTS resolved_by TEXT,
    ADD COLUMN IF NOT EXISTS resolved_reason TEXT;
CREATE INDEX IF NOT EXISTS dead_events_open ON dead_events (board, id) WHERE resolved_at IS NULL;
-- After a resolution the flusher sets Redis to what is due, as after a late duplicate.
ALTER TABLE rejected_events DROP CONSTRAINT IF EXISTS rejected_events_reason;
ALTER TABLE rejected_events ADD CONSTRAINT rejected_events_reason
    CHECK (reason IN ('late_duplicate', 'correction', 'resolved'));
CREATE INDEX IF NOT EXISTS rejected_events_due ON rejected_events (board, part)
    WHERE corrected_at IS NULL AND reason <> 'correction';
