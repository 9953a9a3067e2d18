"""The load generator of `scoreboard bench`: open and closed loops, measurements, reports."""
