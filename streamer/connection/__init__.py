"""One viewer after the handshake."""
