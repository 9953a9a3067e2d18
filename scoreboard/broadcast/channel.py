"""The current messages of one board, encoded once for all connections of a transport. No I/O.

The streamer keeps one channel per board with WebSocket frames, the api one with server-sent events.
A connection compares what it was sent last with ``frame`` and ``status`` by identity, so it holds
no queue: a slow connection skips to the newest board.
"""

from collections.abc import Callable

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from scoreboard.broadcast.messages import Heartbeat, Leaderboard, Message, Status


class BoardChannel:
    """One board's newest leaderboard and status, encoded by ``encode``."""

    __slots__ = (
        "_encode",
        "all_viewers",
        "board",
        "first_frame",
        "frame",
        "is_public",
        "is_stale",
        "leaderboard",
        "status",
    )

    def __init__(self, board: str, encode: Callable[[Message], bytes]) -> None:
        self.board = board
        self.is_public = False
        self.is_stale = False
        self.leaderboard: Leaderboard | None = None
        self.frame = b""
        """The newest leaderboard, encoded; empty until the first."""
        self.first_frame = b""
        """The same for a new connection: the number of viewers may be newer."""
        self.status = b""
        """The newest status, encoded; empty as long as the board was never stale."""
        self._encode = encode
        self.all_viewers: int | UnsetType = UNSET
        """Viewers of the board over all processes, if known."""

    def set_leaderboard(self, leaderboard: Leaderboard) -> None:
        """Replace the leaderboard."""
        if self.all_viewers is not UNSET:
            leaderboard = replace(leaderboard, viewers=self.all_viewers)
        self.leaderboard = leaderboard
        self.frame = self.first_frame = self._encode(leaderboard)

    def set_viewers(self, viewers: int | UnsetType) -> None:
        """Set the viewers of the board over all processes, for the messages from now on."""
        if viewers == self.all_viewers:
            return
        self.all_viewers = viewers
        if self.leaderboard is not None:
            self.first_frame = self._encode(replace(self.leaderboard, viewers=viewers))

    def take_over(self, other: "BoardChannel") -> None:
        """Take over access, status and viewers of another channel of the same board."""
        self.is_public, self.is_stale, self.status = other.is_public, other.is_stale, other.status
        self.all_viewers = other.all_viewers

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
        return self._encode(
            Heartbeat(
                leaderboard.board,
                leaderboard.epoch,
                leaderboard.seq,
                at_ms,
                viewers=self.all_viewers,
            )
        )
