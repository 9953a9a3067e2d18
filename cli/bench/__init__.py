"""The load test `scoreboard bench`."""
