"""Everything PostgreSQL executes: migrations and queries; data only, see scoreboard.resources."""
