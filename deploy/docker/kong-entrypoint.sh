#!/bin/sh
# Kong's vault reads environment variables only, so the counters' password is read from its file.
set -eu
if [ -n "${REDIS_PASSWORD_FILE:-}" ]; then
  REDIS_PASSWORD="$(cat "$REDIS_PASSWORD_FILE")"
  export REDIS_PASSWORD
fi
for entrypoint in /docker-entrypoint.sh /entrypoint.sh; do
  if [ -x "$entrypoint" ]; then
    exec "$entrypoint" "$@"
  fi
done
echo 'Kong entrypoint not found in this image' >&2
exit 1
