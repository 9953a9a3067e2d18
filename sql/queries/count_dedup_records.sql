-- Count the actions of a board since a time, counted and held ones.
-- Index: score_events_occurred_at, held_actions_occurred_at
SELECT (
    SELECT count(*) FROM score_events
    WHERE board = %(board)s AND occurred_at >= to_timestamp(%(since_s)s)
) + (
    SELECT count(*) FROM held_actions
    WHERE board = %(board)s AND occurred_at >= to_timestamp(%(since_s)s)
)
