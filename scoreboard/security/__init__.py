"""Tokens, keys, access rights, client addresses, origins and credentials."""
