"""The parts of `scoreboard up`: planning, starting, supervising and stopping."""
