"""What names in the messages to viewers cost."""
