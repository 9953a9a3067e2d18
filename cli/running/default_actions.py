"""The kinds of actions that `scoreboard up` puts into an empty catalogue."""

from typing import Final

SIMULATED_POINTS: Final = {"kill": 5, "win": 10, "quest": 25, "bonus": 50}
"""Points by kind in the game that `scoreboard simulate` plays, and in README."""

EXAMPLE_POINTS: Final = dict.fromkeys(("curl", "go", "java", "javascript", "python"), 10)
"""Points by kind for the examples of clients, one kind per language or tool."""
