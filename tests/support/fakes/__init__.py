"""Fakes of external services, and peers that misbehave."""
