"""Flow control of one viewer: decide whether it can take a board now. No I/O.

A viewer is held while its write buffer is not empty, or while the pong that acknowledges the last
board is outstanding. A viewer whose buffer filled up, or whose round trip is long, becomes
ack-paced: each board is followed by a ping, and the next board, always the newest, waits for the
pong. What such a viewer sees is at most one board plus one round trip old, through any proxy and
without client code, because browsers answer pings in order and by themselves.
"""

from typing import Final

from scoreboard.runtime.lifecycle import jitter
from scoreboard.runtime.settings import Settings
from streamer import metrics
from streamer.connection.framing import ping_frame

SLOW_RTT_S: Final = 1.0
"""A longer round trip makes a viewer ack-paced."""

FAST_RTT_S: Final = 0.5
FAST_FOR_S: Final = 30.0
"""Round trips below FAST_RTT_S for this long end ack-pacing."""

PING_SPREAD: Final = 0.2

KEEPALIVE: Final = b"k"
KEEPALIVE_FRAME: Final = ping_frame(KEEPALIVE)


class FlowControl:
    """The flow control of one viewer; times are the loop's clock, 0 means never."""

    __slots__ = (
        "_ack_pinged_at_s",
        "_awaited_ack",
        "_fast_since_s",
        "_keepalive_due_s",
        "_keepalive_sent_at_s",
        "is_ack_paced",
        "is_held",
        "paused_at_s",
    )

    def __init__(self, settings: Settings, now_s: float) -> None:
        self.is_held = False
        """An attribute, not a property: it is read for every viewer and board."""
        self.is_ack_paced = False
        self.paused_at_s = 0.0
        self._fast_since_s = 0.0
        self._awaited_ack = b""
        self._ack_pinged_at_s = 0.0
        self._keepalive_sent_at_s = 0.0
        self._keepalive_due_s = now_s + jitter(settings.ping_s, PING_SPREAD)

    def pause(self, now_s: float) -> None:
        """Record that the write buffer is not empty."""
        self.paused_at_s = now_s
        self.is_held = True
        self._start_ack_pacing(now_s)

    def resume(self) -> None:
        """Record that the write buffer is empty again."""
        self.paused_at_s = 0.0
        self.is_held = bool(self._awaited_ack)

    def await_pong(self, ack: bytes, now_s: float) -> None:
        """Hold the next board until the ping behind the current one is answered."""
        self._awaited_ack = ack
        self._ack_pinged_at_s = now_s
        self.is_held = True

    def ping_sent(self, now_s: float) -> None:
        """Record that a keepalive ping was written."""
        self._keepalive_sent_at_s = now_s

    def pong_received(self, payload: bytes, settings: Settings, now_s: float) -> bool:
        """Record a pong; return whether it was expected."""
        if self._awaited_ack and payload == self._awaited_ack:
            self._awaited_ack = b""
            self.is_held = bool(self.paused_at_s)
            self._record_round_trip(now_s - self._ack_pinged_at_s, now_s)
            return True
        if self._keepalive_sent_at_s and payload == KEEPALIVE:
            round_trip_s = now_s - self._keepalive_sent_at_s
            self._keepalive_sent_at_s = 0.0
            self._keepalive_due_s = now_s + jitter(settings.ping_s, PING_SPREAD)
            self._record_round_trip(round_trip_s, now_s)
            return True
        return False

    def is_stalled(self, settings: Settings, now_s: float) -> bool:
        """Return whether the viewer has taken no data for too long."""
        since_s = now_s - settings.slow_viewer_s
        is_unacked = bool(self._awaited_ack) and self._ack_pinged_at_s <= since_s
        return is_unacked or 0.0 < self.paused_at_s <= since_s

    def is_pong_overdue(self, settings: Settings, now_s: float) -> bool:
        """Return whether a keepalive ping was not answered in time."""
        return 0.0 < self._keepalive_sent_at_s <= now_s - settings.pong_timeout_s

    def is_ping_due(self, now_s: float) -> bool:
        """Return whether to send a keepalive ping; none is written behind a full buffer."""
        is_idle = not self._keepalive_sent_at_s and not self.paused_at_s
        return is_idle and now_s >= self._keepalive_due_s

    def next_deadline_s(self, settings: Settings) -> float:
        """Return the earliest time at which one of the three conditions above may change."""
        deadline_s = self._keepalive_due_s
        if self._keepalive_sent_at_s:
            deadline_s = self._keepalive_sent_at_s + settings.pong_timeout_s
        if self.paused_at_s:
            deadline_s = min(deadline_s, self.paused_at_s + settings.slow_viewer_s)
        if self._awaited_ack:
            deadline_s = min(deadline_s, self._ack_pinged_at_s + settings.slow_viewer_s)
        return deadline_s

    def _record_round_trip(self, round_trip_s: float, now_s: float) -> None:
        metrics.PING_RTT.observe(round_trip_s)
        if round_trip_s > SLOW_RTT_S:
            self._start_ack_pacing(now_s)
        elif self.is_ack_paced:
            if round_trip_s >= FAST_RTT_S:
                self._fast_since_s = now_s
            elif now_s - self._fast_since_s >= FAST_FOR_S:
                self.is_ack_paced = False

    def _start_ack_pacing(self, now_s: float) -> None:
        self.is_ack_paced = True
        self._fast_since_s = now_s
