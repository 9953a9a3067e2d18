"""The memory benchmark: what a user, a remembered action and a waiting action need in Redis."""
