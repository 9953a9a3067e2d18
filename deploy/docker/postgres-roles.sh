#!/bin/sh
# PostgreSQL's entrypoint runs this once on an empty data volume. It creates the logins of the
# services. psql gets the passwords in its environment, because every process can read arguments.
set -eu
secrets=/var/lib/scoreboard/secrets/postgres
API_PASSWORD="$(cat "$secrets/api")"
FLUSHER_PASSWORD="$(cat "$secrets/flusher")"
OPERATOR_PASSWORD="$(cat "$secrets/operator")"
export API_PASSWORD FLUSHER_PASSWORD OPERATOR_PASSWORD
psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
  --file /usr/local/share/scoreboard/postgres-roles.sql
