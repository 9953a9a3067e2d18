"""The current messages of one board, encoded once for all connections of a transport. No I/O.

The streamer keeps one channel per board with WebSocket frames, the api one with server-sent events.
A connection compares what it was sent last with ``frame`` and ``status`` by identity, so it holds
no queue: a slow connection skips to the newest board.
"""

from collections.abc import Callable

from scoreboard.broadcast.messages import Heartbeat, Leaderboard, Message, Status


class BoardChannel:
    """One board's newest leaderboard and status, encoded by ``encode``."""

    __slots__ = ("_encode", "board", "frame", "is_public", "is_stale", "leaderboard", "status")

    def __init__(self, board: str, encode: Callable[[Message], bytes]) -> None:
        self.board = board
        self.is_public = False
        self.is_stale = False
        self.leaderboard: Leaderboard | None = None
        self.frame = b""
        """The newest leaderboard, encoded; empty until the first."""
        self.status = b""
        """The newest status, encoded; empty as long as the board was never stale."""
        self._encode = encode

    def set_leaderboard(self, leaderboard: Leaderboard) -> None:
        """Replace the leaderboard."""
        self.leaderboard = leaderboard
        self.frame = self._encode(leaderboard)

    def set_status(self, status: Status) -> None:
        """Replace the status."""
        self.is_stale = status.state == "stale"
        self.status = self._encode(status)

    @property
    def initial_status(self) -> bytes:
        """The status that counts as sent on a new connection; none while stale, so it is sent."""
        return b"" if self.is_stale else self.status

    def heartbeat(self, at_ms: int) -> bytes:
        """Return a heartbeat with the position of the current leaderboard, or b"" without one."""
        leaderboard = self.leaderboard
        if leaderboard is None:
            return b""
        return self._encode(Heartbeat(leaderboard.board, leaderboard.epoch, leaderboard.seq, at_ms))
