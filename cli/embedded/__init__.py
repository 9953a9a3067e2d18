"""Embedded Valkey and PostgreSQL servers."""
