"""One module per group of endpoints, and what they share."""
