-- Record a backup, unless its time is in the future: it would hide that later backups are missing.
-- Index: backups_pk
INSERT INTO backups (taken_at, location, check_method, recorded_by)
SELECT taken_at, %(location)s, %(check_method)s, %(recorded_by)s
FROM (SELECT coalesce(%(taken_at)s::TIMESTAMPTZ, now()) AS taken_at) t
WHERE taken_at <= now() + INTERVAL '1 minute'
RETURNING taken_at
