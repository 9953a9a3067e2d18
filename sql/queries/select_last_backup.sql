-- Read when the newest checked backup was taken, and the age of it in seconds.
-- Index: backups_checked
SELECT taken_at, extract(epoch FROM now() - taken_at)::FLOAT8 FROM backups
WHERE check_method IS NOT NULL
ORDER BY taken_at DESC
LIMIT 1
