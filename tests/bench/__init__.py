"""Benchmarks: run by `make bench-…`, never by `make test`. Figures stand in docs/benchmarks.md."""
