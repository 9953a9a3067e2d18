"""The WebSocket service: one Redis subscription per process, the same bytes for every viewer."""
