"""Cost of reading and sending the places of thousands of users: `make bench-places`."""
