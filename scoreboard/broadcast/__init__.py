"""What viewers are shown: board state, frames, close codes."""
