"""The kinds of actions that `scoreboard up` inserts into an empty catalogue."""

from typing import Final

SIMULATED_POINTS: Final = {"kill": 5, "win": 10, "quest": 25, "bonus": 50}
"""Points by kind of the actions of `scoreboard simulate` and of README."""

EXAMPLE_POINTS: Final = dict.fromkeys(("curl", "go", "java", "javascript", "python"), 10)
"""Points by kind of the client examples, one kind for each language or tool."""
