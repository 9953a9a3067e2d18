-- Export the dead letters of a user; raw is the entry as it was in the stream.
-- Index: none, one pass over the dead letters
-- raw is JSON without spaces, in which quotation marks of a value are escaped: the text that is looked
-- for can only be the field u.
SELECT d.board AS "board",
       d.id AS "id",
       d.part AS "partition",
       d.stream_id AS "streamId",
       d.reason AS "reason",
       d.recorded_at AS "recordedAt",
       d.resolution AS "resolution",
       d.resolved_at AS "resolvedAt",
       d.resolved_by AS "resolvedBy",
       d.resolved_reason AS "resolvedReason",
       encode(d.raw, 'escape') AS "raw"
FROM dead_events d
WHERE position(convert_to('"u":"' || %(user)s::TEXT || '"', 'UTF8') IN d.raw) > 0
ORDER BY d.id
