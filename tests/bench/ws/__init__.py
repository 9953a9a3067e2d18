"""What it costs to show a board to thousands: `make bench-ws`."""
