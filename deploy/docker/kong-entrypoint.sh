#!/bin/sh
# Kong's vault reads environment variables only, so the counters' password is read from its secret at
# each start. A rotation makes passwords that JSON does not escape; others are refused.
set -eu
if [ -n "${REDIS_PASSWORD_FILE:-}" ]; then
  REDIS_PASSWORD="$(sed -n 's/.*"password": *"\([^"\\]*\)".*/\1/p' "$REDIS_PASSWORD_FILE")"
  if [ -z "$REDIS_PASSWORD" ]; then
    echo "$REDIS_PASSWORD_FILE has no \"password\", or one with \" or a backslash" >&2
    exit 1
  fi
  export REDIS_PASSWORD
fi
for entrypoint in /docker-entrypoint.sh /entrypoint.sh; do
  if [ -x "$entrypoint" ]; then
    exec "$entrypoint" "$@"
  fi
done
echo 'Kong entrypoint not found in this image' >&2
exit 1
