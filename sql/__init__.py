"""Everything PostgreSQL executes: migrations and queries; data only, read by scoreboard.resources."""
