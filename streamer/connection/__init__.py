"""One viewer after the opening handshake."""
