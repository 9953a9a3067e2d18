-- depends: 0012_keep_score_events
-- The latest moment that a partition's rows were given: later rows never get an earlier one.
ALTER TABLE flush_state
    ADD COLUMN IF NOT EXISTS clock TIMESTAMPTZ NOT NULL DEFAULT '-infinity';
