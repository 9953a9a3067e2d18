#!/bin/sh
# Run once, by PostgreSQL's entrypoint, on an empty data volume. The owner migrates; services log in
# as a role that may read and write rows and nothing else. scoreboard_b is the second login of the
# pair: a rotation gives the idle one a new password (docs/operations.md).
set -eu
password="$(cat /var/lib/scoreboard/secrets/postgres/scoreboard_a)"
psql -v ON_ERROR_STOP=1 -v password="$password" --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
  --file /usr/local/share/scoreboard/postgres-roles.sql
