"""Stand-ins for other people's programs, and peers that misbehave."""
