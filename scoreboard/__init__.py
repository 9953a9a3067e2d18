"""What the services share, from errors and keys up to live (Redis) and archive (PostgreSQL)."""
