"""The duration of a reseed and of a verification: `make bench-reseed`."""
