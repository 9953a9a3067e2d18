#!/bin/sh
# Kong's vault reads environment variables only, so the counters' password is read at each start: from
# its secret, a JSON document, or from the file that `scoreboard kong sync --password-file` writes.
set -eu
if [ -n "${REDIS_PASSWORD_FILE:-}" ]; then
  REDIS_PASSWORD="$(cat "$REDIS_PASSWORD_FILE")"
  case "$REDIS_PASSWORD" in
    "{"*)  # A rotation makes passwords that JSON does not escape; others are refused.
      REDIS_PASSWORD="$(printf '%s' "$REDIS_PASSWORD" \
        | sed -n 's/.*"password": *"\([^"\\]*\)".*/\1/p')" ;;
  esac
  if [ -z "$REDIS_PASSWORD" ]; then
    echo "$REDIS_PASSWORD_FILE has no password, or one with \" or a backslash in JSON" >&2
    exit 1
  fi
  export REDIS_PASSWORD
fi
# A viewer is two connections. The engine's soft limit may be 1024; only its hard limit is binding.
files=$(ulimit -H -n)
if [ "$files" = unlimited ] || [ "$files" -gt 65536 ]; then files=65536; fi
ulimit -S -n "$files"
for entrypoint in /docker-entrypoint.sh /entrypoint.sh; do
  if [ -x "$entrypoint" ]; then
    exec "$entrypoint" "$@"
  fi
done
echo 'Kong entrypoint not found in this image' >&2
exit 1
