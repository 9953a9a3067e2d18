-- List the backups recorded last, newest first.
-- Index: backups_pk
SELECT taken_at, location, check_method, recorded_at, recorded_by FROM backups
ORDER BY id DESC
LIMIT %(limit)s
