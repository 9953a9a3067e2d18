"""Stream to PostgreSQL, exactly once."""
