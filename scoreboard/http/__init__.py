"""HTTP/1.1, read strictly: heads, bodies and queries without I/O, and the server built on them."""
