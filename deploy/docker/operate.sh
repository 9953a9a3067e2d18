# Functions for operators of the installation of docker-compose.yml; docs/how-to/runbook.md describes them.
# In the folder of that file:  . deploy/docker/operate.sh
# shellcheck shell=sh disable=SC3043  # `local` works in all usual shells

SECRETS=/var/lib/scoreboard/secrets
# shellcheck disable=SC2034  # the pages use it
VALKEY_SETTINGS=deploy/docker/valkey.conf

BLOCKERS="SELECT pid, usename, application_name, now() - xact_start AS open_for, left(query, 50) AS query
          FROM pg_stat_activity WHERE pid IN (SELECT unnest(pg_blocking_pids(pid)) FROM pg_stat_activity)"

state() { docker compose ps --all --format '{{.Service}} {{.Status}}'; }

stop() { docker compose stop "$@"; }
start() { docker compose up --detach --no-deps --no-build "$@"; }
restart() { docker compose restart --no-deps "$@"; }

logs() { docker compose logs --no-log-prefix --tail "${2:-50}" "$1"; }

# The last lines of level warning or error, without the fields that are the same in each.
warnings() {
  logs "$1" 500 | { grep -E '"log.level": "(warning|error|critical)"|^[^{]' || true; } | tail -n 10 |
    sed -E 's/"(ecs\.version|service\.[a-z]+|event\.dataset|log\.logger)": "[^"]*"(, )?//g; s/, *\}/}/'
}

# Print what a port of a part answers, whatever the status.
_get() {
  docker compose exec -T "$1" python -c '
import sys, urllib.error, urllib.request
try:
    answer = urllib.request.urlopen(sys.argv[1], timeout=3)
except urllib.error.HTTPError as error:
    answer = error
print(answer.read().decode())' "http://127.0.0.1:$2" || echo "$1 does not answer"
}

health() {
  case ${1-} in
    '') echo 'usage: health api|admin|streamer|flusher|kong-sync' >&2; return 2 ;;
    api | admin) _get "$1" 8000/health/ready ;;
    streamer) _get streamer 9101/health/ready ;;
    flusher) _get flusher 9102/health/ready ;;
    kong-sync) _get kong-sync 9103/health/ready ;;
    *) echo "$1 has no health port; see: state" ;;
  esac
}

ready() {
  local answer='' _
  for _ in $(seq 30); do
    answer=$(health "$1")
    case $answer in '{"status":"ready"'*) echo "$answer"; return ;; esac
    sleep 2
  done
  echo "$answer"
  return 1
}

# Wait until `scoreboard status` says that all is well, at most a minute.
well() {
  local _
  for _ in $(seq 15); do
    scoreboard status && return
    sleep 2
  done
  return 1
}

metrics() {
  case $1 in
    api | admin) _get "$1" 9100/metrics ;;
    streamer) _get streamer 9101/metrics ;;
    flusher) _get flusher 9102/metrics ;;
    kong-sync) _get kong-sync 9103/metrics ;;
    *) echo "$1 has no metrics" ;;
  esac | grep -v '^#' | grep "$2" || echo "no metric with $2 at the moment"
}

scoreboard() { docker compose run --rm --no-deps -T open scoreboard "$@"; }
secrets() { docker compose run --rm --no-deps -T --entrypoint 'scoreboard secrets' rotate "$@"; }

write_secret() {
  # shellcheck disable=SC2016  # for the shell in the container
  docker compose run --rm --no-deps -T --entrypoint sh rotate \
    -c 'umask 077 && cat >"$0.new" && mv "$0.new" "$0"' "$SECRETS/$1"
}

database() { docker compose exec -T postgres psql -X -U scoreboard_owner scoreboard "$@"; }
blockers() { database -c "$BLOCKERS"; }
dump() { docker compose exec -T postgres pg_dump -U scoreboard_owner --format=custom scoreboard; }
check_dump() { docker compose exec -T postgres pg_restore --list >/dev/null; }
load_dump() { docker compose exec -T postgres pg_restore -U scoreboard_owner --exit-on-error --no-owner --dbname=scoreboard; }
new_database() { docker compose exec -T postgres createdb -U scoreboard_owner scoreboard; }
migrate() { docker compose run --rm --no-deps -T migrate; }

redis() { docker compose run --rm --no-deps -T open python - "$@" <deploy/docker/redis_command.py; }
