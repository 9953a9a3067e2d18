-- Count the dead letters between two entries that explain seqs which are missing there.
-- Index: dead_events_pk
-- They have such a seq, or their seq could not be read. Resolved ones are counted, too.
SELECT count(*) FROM dead_events
WHERE board = %(board)s AND part = %(part)s
  AND (seq IS NULL OR seq BETWEEN %(expected)s AND %(found)s - 1)
  AND ARRAY[split_part(stream_id, '-', 1)::NUMERIC, split_part(stream_id, '-', 2)::NUMERIC]
      BETWEEN ARRAY[split_part(%(after)s::TEXT, '-', 1)::NUMERIC, split_part(%(after)s::TEXT, '-', 2)::NUMERIC + 1]
          AND ARRAY[split_part(%(before)s::TEXT, '-', 1)::NUMERIC, split_part(%(before)s::TEXT, '-', 2)::NUMERIC - 1]
