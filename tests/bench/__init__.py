"""Benchmarks for `make bench-…`; figures: docs/explanation/benchmarks.md."""
