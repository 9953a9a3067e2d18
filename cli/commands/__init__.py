"""The commands of `scoreboard --help`, one module for each."""
