"""Redis: keys, scripts, connections, reads and updates."""
