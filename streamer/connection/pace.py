"""Whether one viewer can take a board now, and whether boards wait for its pongs. No I/O.

A viewer is held while its buffer is not empty, or while the pong that acknowledges the last board
is outstanding. One that was seen full, or whose round trip is long, has each board followed by a
ping, and the next board, always the newest, waits for the pong: so what it sees is at most one
board plus one round trip old, through any proxy, without code in the viewer (browsers answer pings
in order and by themselves).
"""

import random
from typing import Final

from scoreboard.runtime.settings import Settings
from streamer import metrics
from streamer.connection.framing import ping_frame

SLOW_RTT_S: Final = 1.0
"""A round trip over this makes boards wait for the pong of the one before."""

CALM_RTT_S: Final = 0.5
CALM_S: Final = 30.0
"""Round trips under the first for the second, and boards wait no longer."""

PING_SPREAD: Final = 0.2

KEEPALIVE: Final = b"k"
KEEPALIVE_FRAME: Final = ping_frame(KEEPALIVE)


class FlowControl:
    """One viewer's; moments are the loop's clock, 0 for never."""

    __slots__ = (
        "_acked_s",
        "_awaiting",
        "_calm_since_s",
        "_ping_at_s",
        "_pinged_at_s",
        "is_held",
        "is_watched",
        "paused_at_s",
    )

    def __init__(self, settings: Settings, now_s: float) -> None:
        self.is_held = False
        """Read for every viewer and board, hence no property."""
        self.is_watched = False
        self.paused_at_s = 0.0
        self._calm_since_s = 0.0
        self._awaiting = b""
        self._acked_s = 0.0
        self._pinged_at_s = 0.0
        self._ping_at_s = now_s + spread(settings.ping_s, PING_SPREAD)

    def pause(self, now_s: float) -> None:
        """Note that the buffer is not empty."""
        self.paused_at_s = now_s
        self.is_held = True
        self._watch(now_s)

    def resume(self) -> None:
        """Note that the buffer is empty again."""
        self.paused_at_s = 0.0
        self.is_held = bool(self._awaiting)

    def await_pong(self, ack: bytes, now_s: float) -> None:
        """Hold the next board until the ping behind this one is answered."""
        self._awaiting = ack
        self._acked_s = now_s
        self.is_held = True

    def pinged(self, now_s: float) -> None:
        """Note that a keepalive ping was written."""
        self._pinged_at_s = now_s

    def take_pong(self, payload: bytes, settings: Settings, now_s: float) -> bool:
        """Take a pong; tell whether it was awaited."""
        if self._awaiting and payload == self._awaiting:
            self._awaiting = b""
            self.is_held = bool(self.paused_at_s)
            self._note(now_s - self._acked_s, now_s)
            return True
        if self._pinged_at_s and payload == KEEPALIVE:
            round_trip_s = now_s - self._pinged_at_s
            self._pinged_at_s = 0.0
            self._ping_at_s = now_s + spread(settings.ping_s, PING_SPREAD)
            self._note(round_trip_s, now_s)
            return True
        return False

    def is_stuck(self, settings: Settings, now_s: float) -> bool:
        """Tell whether nothing was taken for too long."""
        since_s = now_s - settings.slow_viewer_s
        is_unacked = bool(self._awaiting) and self._acked_s <= since_s
        return is_unacked or 0.0 < self.paused_at_s <= since_s

    def is_silent(self, settings: Settings, now_s: float) -> bool:
        """Tell whether a ping was not answered in time."""
        return 0.0 < self._pinged_at_s <= now_s - settings.pong_timeout_s

    def wants_ping(self, now_s: float) -> bool:
        """Tell whether a keepalive ping is due; none is written behind a full buffer."""
        return not self._pinged_at_s and not self.paused_at_s and now_s >= self._ping_at_s

    def due_s(self, settings: Settings) -> float:
        """Give the next moment at which one of these may change."""
        due_s = self._ping_at_s
        if self._pinged_at_s:
            due_s = self._pinged_at_s + settings.pong_timeout_s
        if self.paused_at_s:
            due_s = min(due_s, self.paused_at_s + settings.slow_viewer_s)
        if self._awaiting:
            due_s = min(due_s, self._acked_s + settings.slow_viewer_s)
        return due_s

    def _note(self, round_trip_s: float, now_s: float) -> None:
        metrics.PING_RTT.observe(round_trip_s)
        if round_trip_s > SLOW_RTT_S:
            self._watch(now_s)
        elif self.is_watched:
            if round_trip_s >= CALM_RTT_S:
                self._calm_since_s = now_s
            elif now_s - self._calm_since_s >= CALM_S:
                self.is_watched = False

    def _watch(self, now_s: float) -> None:
        self.is_watched = True
        self._calm_since_s = now_s


def spread(value_s: float, share: float) -> float:
    """Give a time around ``value_s``, so that what began together does not stay so."""
    return value_s * random.uniform(1 - share, 1 + share)  # noqa: S311 (jitter)
