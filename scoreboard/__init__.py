"""What the services share: the domain at the top, one folder per concern below it."""
