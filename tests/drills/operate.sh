# The functions of docs/how-to/runbook.md on the system of a drill; deploy/docker/operate.sh has those of Compose.

BLOCKERS="SELECT pid, usename, application_name, now() - xact_start AS open_for, left(query, 50) AS query
          FROM pg_stat_activity WHERE pid IN (SELECT unnest(pg_blocking_pids(pid)) FROM pg_stat_activity)"

state() {
  local part pid
  for part in valkey postgres flusher streamer api; do
    pid=$(cat "$DRILL/parts/$part.pid" 2>/dev/null || true)
    if [ -e "$DRILL/parts/$part.stopped" ]; then echo "$part stopped"
    elif [ -z "$pid" ]; then echo "$part restarting"
    elif grep -q '^State:.T' "/proc/$pid/status" 2>/dev/null; then echo "$part frozen"
    else echo "$part running"
    fi
  done
}

stop() {
  local part
  for part; do
    touch "$DRILL/parts/$part.stopped"
    for _ in $(seq 300); do
      [ -e "$DRILL/parts/$part.pid" ] || continue 2
      read -rt 0.1 <> <(:) || true
    done
    echo "$part did not stop within 30 s" >&2
    return 1
  done
}

start() {
  local part
  for part; do
    rm -f "$DRILL/parts/$part.stopped"
    for _ in $(seq 100); do
      [ -e "$DRILL/parts/$part.pid" ] && continue 2
      read -rt 0.1 <> <(:) || true
    done
    echo "$part did not start within 10 s; see: logs $part" >&2
    return 1
  done
}

restart() { stop "$@" && start "$@"; }

logs() {
  local log=$DRILL/system/$1.log
  case $1 in valkey | postgres) log=$DRILL/system/$1/server.log ;; esac
  { cat "$log.1" "$log" 2>/dev/null || true; } | tail -n "${2:-50}"
}

# The last lines of level warning or error, without the fields that are the same in each.
warnings() {
  logs "$1" 500 | { grep -E '"log.level": "(warning|error|critical)"|^[^{]' || true; } | tail -n 10 |
    sed -E 's/"(ecs\.version|service\.[a-z]+|event\.dataset|log\.logger)": "[^"]*"(, )?//g; s/, *\}/}/'
}

_is_part() { case ${1-} in api | streamer | flusher) ;; *) echo "usage: $2 api|streamer|flusher" >&2; return 2 ;; esac; }

health() {
  _is_part "${1-}" health || return
  local base=DRILL_HEALTH_$1
  curl -s --max-time 2 "${!base}/health/ready" && echo || echo "$1 does not answer"
}

ready() {
  _is_part "${1-}" ready || return
  local base=DRILL_HEALTH_$1
  for _ in $(seq $((${WAIT_S:-60} * 5))); do
    curl -sf --max-time 2 -o /dev/null "${!base}/health/ready" && { health "$1"; return; }
    read -rt 0.2 <> <(:) || true
  done
  health "$1"
  return 1
}

well() {
  local end=$((SECONDS + ${WAIT_S:-60})) code=0
  until scoreboard status >/dev/null; do
    [ "$SECONDS" -lt "$end" ] || code=1
    [ "$code" = 0 ] || break
    read -rt 0.5 <> <(:) || true
  done
  scoreboard status || code=1
  return "$code"
}

_matching() { grep "$1" || echo "no metric with $1 at the moment"; }

metrics() { local base=DRILL_METRICS_$1; curl -sS --max-time 2 "${!base}/metrics" | grep -v '^#' | _matching "$2"; }

# shellcheck disable=SC2086
scoreboard() { env $DRILL_OPERATOR "$DRILL_PYTHON" -m cli "$@"; }

# shellcheck disable=SC2086
secrets() { env $DRILL_ROTATOR "$DRILL_PYTHON" -m cli secrets "$@"; }

write_secret() { cat >"$SECRETS/$1.new" && mv "$SECRETS/$1.new" "$SECRETS/$1"; }

_owner() { PAGER='' PGPASSWORD=$DRILL_DATABASE_PASSWORD "$DRILL_PROGRAMS/$1" "${@:2}"; }

database() { _owner psql -X "$DRILL_DATABASE_URL" "$@"; }
blockers() { database -c "$BLOCKERS"; }
dump() { _owner pg_dump --format=custom "$DRILL_DATABASE_URL"; }
check_dump() { _owner pg_restore --list >/dev/null; }
load_dump() { _owner pg_restore --exit-on-error --no-owner --dbname="$DRILL_DATABASE_URL"; }
new_database() { _owner psql -X -q "${DRILL_DATABASE_URL%/*}/postgres" -c 'CREATE DATABASE scoreboard'; }

migrate() {
  PGPASSWORD=$DRILL_DATABASE_PASSWORD DATABASE_URL=$DRILL_DATABASE_URL "$DRILL_PYTHON" -m cli db migrate
}

# shellcheck disable=SC2086
redis() { env $DRILL_OPERATOR "$DRILL_PYTHON" "$PYTHONPATH/deploy/docker/redis_command.py" "$@"; }
