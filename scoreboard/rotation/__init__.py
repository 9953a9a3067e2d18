"""Rotation of secrets: new versions, and the servers that accept them."""
