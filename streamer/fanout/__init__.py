"""Send boards to viewers: channels, shared connection state, deadlines."""
