#!/bin/sh
# The service `roles` of docker-compose.yml: creates the roles and logins that are missing, and checks
# that PostgreSQL accepts the secret of each service. The owner's login is in PG* variables. psql gets
# passwords in its environment, because every process can read arguments.
set -eu
secrets=/var/lib/scoreboard/secrets

query() {
  psql -X -w -q -A -t -v ON_ERROR_STOP=1 "$@"
}

if ! query -c 'SELECT' >/dev/null; then
  echo "PostgreSQL refuses $PGUSER with the password of the volume secrets-owner: the volume" \
    "postgres-data is older or comes from another installation. Nothing was changed. See" \
    '"Passwords that do not fit" in docs/how-to/docker-compose.md.' >&2
  exit 1
fi

API_DATABASE="$(cat "$secrets/api/database")"
STREAMER_DATABASE="$(cat "$secrets/streamer/database")"
FLUSHER_DATABASE="$(cat "$secrets/flusher/database")"
OPERATOR_DATABASE="$(cat "$secrets/operator/database")"
ROTATOR_DATABASE="$(cat "$secrets/rotator/database")"
MONITOR_PASSWORD="$(cat "$secrets/monitor/database-password")"
export API_DATABASE STREAMER_DATABASE FLUSHER_DATABASE OPERATOR_DATABASE ROTATOR_DATABASE MONITOR_PASSWORD
query --file /usr/local/share/scoreboard/postgres-roles.sql

refused=0
for service in api streamer flusher operator rotator; do
  SECRET="$(cat "$secrets/$service/database")"
  export SECRET
  login="$(printf '%s\n' '\getenv secret SECRET' "SELECT :'secret'::json ->> 'username';" | query)"
  password="$(printf '%s\n' '\getenv secret SECRET' "SELECT :'secret'::json ->> 'password';" | query)"
  if ! PGPASSWORD="$password" query -U "$login" -c 'SELECT' >/dev/null; then
    echo "PostgreSQL refuses $login with the password of the volume secrets-$service." >&2
    refused=1
  fi
done
if [ "$refused" = 1 ]; then
  echo 'See "Passwords that do not fit" in docs/how-to/docker-compose.md.' >&2
fi
exit "$refused"
