#!/bin/sh
# Kong's vault knows environment variables only: take the counters' password out of its file.
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
echo 'this image has no entrypoint of Kong' >&2
exit 1
