"""Boards and history, written straight into the stores."""
