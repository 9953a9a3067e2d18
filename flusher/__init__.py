"""Writes the streams of events to PostgreSQL, exactly once."""
