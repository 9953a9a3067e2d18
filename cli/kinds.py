"""The kinds of actions of the game that `scoreboard up` and `scoreboard simulate` play."""

from typing import Final

POINTS: Final = {"kill": 5, "win": 10, "quest": 25, "bonus": 50}
"""Points by kind: put into an empty catalogue by `up`, so that README's `win:…` counts."""
