-- Set the limits of a board; 0 is none.
-- Index: boards_pk
UPDATE boards
SET points_per_action = nullif(%(per_action)s::INT, 0),
    points_per_window = nullif(%(per_window)s::INT, 0),
    window_s = nullif(%(window_s)s::INT, 0)
WHERE board = %(board)s
