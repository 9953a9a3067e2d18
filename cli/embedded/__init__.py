"""Valkey and PostgreSQL as child processes."""
