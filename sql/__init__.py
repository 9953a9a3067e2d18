"""Everything PostgreSQL executes: migrations and queries; data only, read through scoreboard.resources."""
