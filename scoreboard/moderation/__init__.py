"""What administrators do to scores and users: corrections, voids, bans, and their undoing."""
