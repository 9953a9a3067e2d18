#!/bin/sh
# Run once, by PostgreSQL's entrypoint, on an empty data volume: makes the logins of the services.
# Passwords go by the environment of psql, as arguments can be read by every process.
set -eu
secrets=/var/lib/scoreboard/secrets/postgres
API_PASSWORD="$(cat "$secrets/api")"
FLUSHER_PASSWORD="$(cat "$secrets/flusher")"
OPERATOR_PASSWORD="$(cat "$secrets/operator")"
export API_PASSWORD FLUSHER_PASSWORD OPERATOR_PASSWORD
psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
  --file /usr/local/share/scoreboard/postgres-roles.sql
