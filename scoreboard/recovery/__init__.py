"""Reseed, verify and repair: keep Redis and PostgreSQL consistent."""
