"""The api against the obvious way of writing it: `make bench-api`."""
