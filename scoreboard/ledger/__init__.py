"""PostgreSQL: connections, queries, migrations."""
