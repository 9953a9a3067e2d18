"""Redis: keys, scripts, connections, and what they hold."""
