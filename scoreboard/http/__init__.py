"""A strict HTTP/1.1 server, on parsers of heads, bodies and queries without I/O."""
