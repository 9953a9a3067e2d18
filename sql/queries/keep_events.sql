-- End what release_events began, in the same transaction: no other session sees the trigger disabled.
-- Index: none
ALTER TABLE score_events ENABLE TRIGGER score_events_no_change
