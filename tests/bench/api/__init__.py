"""The api compared with a plain implementation: `make bench-api`."""
