"""Tokens, keys, addresses, origins and credentials."""
