"""Benchmarks: run by `make bench-…`, never by `make test`. Figures: docs/explanation/benchmarks.md."""
