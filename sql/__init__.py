"""Everything PostgreSQL executes: migrations and queries. Data only."""
