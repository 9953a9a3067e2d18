"""Real servers and processes of the system."""
