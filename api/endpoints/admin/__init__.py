"""What administrators do over HTTP: the same as the commands, by the same modules."""
