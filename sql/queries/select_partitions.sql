-- List the partitions of a board that were ever opened, whatever its layout is now.
-- Index: flush_state_pk
SELECT part FROM flush_state WHERE board = %(board)s ORDER BY part
