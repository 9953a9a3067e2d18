"""What one process knows of one board, and whether a read of it is news. No I/O.

The relay asks, the streamer and the api show. What stays true: the frame held here never goes back.
A read older than the last accepted one (a failover that lost writes, a restored backup) changes
nothing until the board's epoch has risen, which only an operator's repair does. Otherwise viewers
would ignore every update until ``seq`` had caught up, or take an older epoch for news.
"""

from enum import Enum

from scoreboard.broadcast.frames import Leaderboard, StaleReason, Status
from scoreboard.model import Window


class Verdict(Enum):
    """What a read says against the last accepted one."""

    NEWS = "news"
    SAME = "same"
    REWOUND = "rewound"


class BoardState:
    """The newest accepted state of one board."""

    __slots__ = ("_positions", "board", "frame", "is_public", "trouble")

    def __init__(self, board: str) -> None:
        self.board = board
        self.frame: Leaderboard | None = None
        """What viewers see; None until the first good read."""
        self.is_public = False
        self.trouble: StaleReason | None = None
        """Why viewers have been told that the board may be old; None while it is live."""
        self._positions: tuple[tuple[int, int], ...] = ()

    @property
    def status(self) -> Status:
        """The message that tells viewers whether the board is live."""
        return Status("stale", self.trouble) if self.trouble else Status("live")

    def take(self, window: Window, at_ms: int) -> Verdict:
        """Judge a read, and keep it unless it is older than what was accepted before.

        The same rows under a higher ``seq`` are no news: most actions do not touch the top. A new
        epoch always is, so that viewers count from it.
        """
        positions = window.positions or ((window.epoch, window.seq),)
        if self._is_older(positions):
            return Verdict.REWOUND
        self._positions = positions
        held = self.frame
        if held is not None and held.epoch == window.epoch and held.leaderboard == window.rows:
            return Verdict.SAME
        self.frame = Leaderboard(self.board, window.epoch, window.seq, at_ms, window.rows)
        return Verdict.NEWS

    def _is_older(self, positions: tuple[tuple[int, int], ...]) -> bool:
        if len(positions) != len(self._positions):
            # The board was made anew with other partitions: only the sum of epochs compares.
            epochs = sum(epoch for epoch, _ in positions)
            return bool(self._positions) and epochs <= sum(epoch for epoch, _ in self._positions)
        return any(new < old for new, old in zip(positions, self._positions, strict=True))
