"""Cost of sending a board to thousands of viewers: `make bench-ws`."""
