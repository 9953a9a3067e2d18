"""What viewers receive: board state, messages, close codes."""
