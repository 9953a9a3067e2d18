-- Return which of some names are those of boards.
-- Index: boards_pk
SELECT board FROM boards WHERE board = ANY(%(names)s) AND state <> 'deleted'
