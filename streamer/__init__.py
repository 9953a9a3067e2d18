"""WebSockets: one Redis subscription per process, the same bytes to every viewer."""
