#!/bin/sh
# Stand-in for the entry point of Kong's image; kong.py says what it does.
exec python3 /usr/local/lib/kong/kong.py "$@"
