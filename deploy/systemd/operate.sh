# Functions for operators of an installation with systemd; docs/how-to/systemd.md describes them.
# As root:  . /opt/scoreboard/operate.sh
# shellcheck shell=sh disable=SC3043  # `local` works in all usual shells

SECRETS=/var/lib/scoreboard/secrets

state() { systemctl --no-pager list-units 'scoreboard*' --all; }
start() { _each start "$@"; }
stop() { _each stop "$@"; }

# One process after the other; each is ready before the next stops.
restart() {
  local part unit
  for part in "$@"; do
    for unit in $(_units "$part"); do
      systemctl restart "$unit" || return
      ready "$unit" > /dev/null || { echo "$unit is not ready"; return 1; }
    done
  done
}

logs() { journalctl --no-pager --output cat --lines "${2:-50}" --unit "scoreboard-$1*"; }

# The last lines of level warning or error of the processes, without those of systemd.
warnings() {
  journalctl --no-pager --output cat --lines 500 --unit "scoreboard-$1*" _TRANSPORT=stdout | { grep -E '"log.level": "(warning|error|critical)"|^[^{]' || true; } | tail -n 10
}

# Print what each process of a part, or one unit, answers.
health() { _get "$1" /health/ready; }
metrics() { _get "$1" /metrics | grep -F -- "$2"; }

# Wait until each process of a part, or one unit, is ready, at most a minute.
ready() {
  local answer='' _
  for _ in $(seq 60); do
    answer=$(health "$1")
    case $answer in *'not ready'* | *'does not answer'* | *draining*) sleep 1 ;; *) echo "$answer"; return ;; esac
  done
  echo "$answer"
  return 1
}

# The command line with the operator's logins; `secrets` is that of the rotator.
scoreboard() { _as operator "$@"; }
secrets() { _as rotator secrets "$@"; }

_as() {
  local user=$1
  shift
  (
    export SCOREBOARD_REDIS_SECRET="$SECRETS/$user/redis" SCOREBOARD_DATABASE_SECRET="$SECRETS/$user/database"
    _load /etc/scoreboard/scoreboard.env || exit
    [ ! -e "/etc/scoreboard/$user.env" ] || _load "/etc/scoreboard/$user.env" || exit
    cd /
    exec runuser -u "scoreboard-$user" -- /opt/scoreboard/bin/scoreboard "$@"
  )
}

# Export the variables of a file as systemd reads it: a value is not shell code, and may contain & or $.
_load() {
  local line name value
  while read -r line || [ -n "$line" ]; do
    case $line in [A-Za-z_]*=*) ;; *) continue ;; esac
    name=${line%%=*} value=${line#*=}
    case $value in \"*\" | \'*\') value=${value#?} value=${value%?} ;; esac
    export "$name=$value"
  done < "$1"
}

# The enabled processes of a part: api, streamer, flusher, admin, kong-sync, or the unit itself.
_units() {
  case $1 in
    scoreboard-*) echo "$1" ;;
    admin | kong-sync) echo "scoreboard-$1.service" ;;
    *) systemctl --no-legend list-units "scoreboard-$1@*.service" --all --plain | cut -d ' ' -f 1 ;;
  esac
}

_each() {
  local verb=$1 part
  shift
  # shellcheck disable=SC2046  # one word for each unit
  for part in "$@"; do systemctl "$verb" $(_units "$part") || return; done
}

_get() {
  local unit pid port
  for unit in $(_units "$1"); do
    pid=$(systemctl show --value --property MainPID "$unit")
    port=$(tr '\0' '\n' < "/proc/$pid/environ" 2> /dev/null | sed -n 's/^SCOREBOARD_[A-Z]*_METRICS_PORT=//p')
    [ "$unit" = scoreboard-kong-sync.service ] && port=9103
    /opt/scoreboard/bin/python -c '
import sys, urllib.error, urllib.request
try:
    answer = urllib.request.urlopen(sys.argv[1], timeout=3)
except urllib.error.HTTPError as error:
    answer = error
print(answer.read().decode())' "http://127.0.0.1:${port:-0}$2" 2> /dev/null || echo "$unit does not answer"
  done
}
