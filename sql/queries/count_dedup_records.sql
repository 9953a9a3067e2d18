-- Count the actions of a board since a time.
-- Index: score_events_occurred_at
SELECT count(*) FROM score_events
WHERE board = %(board)s AND occurred_at >= to_timestamp(%(since_s)s)
