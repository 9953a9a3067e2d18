"""The rules of a live board: when to connect, what to deliver, how long to wait.

`Follower.run` does no I/O: it yields what to do and is sent what came of it. The blocking and the
asyncio client do it, and wake the follower up when their caller asks for something.
"""

import random
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlencode, urlsplit, urlunsplit

from msgspec import UNSET, json
from msgspec.structs import replace

from ._exchange import NeedToken, Pause
from ._tokens import TokenReason
from .errors import LiveStoppedError, ProblemError
from .events import (
    AuthExpiring,
    Board,
    Bye,
    Delta,
    Event,
    Heartbeat,
    Message,
    Place,
    Refused,
    ServerError,
    SourceStatus,
    Status,
    Viewers,
    parse,
)

SUBPROTOCOLS = ("scoreboard.v1.delta", "scoreboard.v1")
"""What is offered: the compact form is preferred, earlier servers have only the other."""


@dataclass(frozen=True, slots=True)
class Patience:
    """The times of a live board, in seconds.

    A connection that delivered a board and lasted `settled_s` resets the back-off.
    """

    first_message_s: float = 10.0
    silence_s: float = 37.0
    settled_s: float = 10.0
    sync_s: float = 2.0
    renewal_s: float = 10.0
    renewals: int = 4
    first_wait_s: float = 0.5
    ceiling_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Window:
    """Which rows of a board to show."""

    rows: int = 10
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Open:
    """Connect; the result is None, or why it failed."""

    url: str
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Write:
    """Send a message; a lost connection shows with the next Receive."""

    text: str


@dataclass(frozen=True, slots=True)
class Receive:
    """Wait for a message; the result is its text, Closed, or None if the time is over."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the connection, if there is one."""


@dataclass(frozen=True, slots=True)
class Emit:
    """Deliver an event to the caller."""

    event: Event


@dataclass(frozen=True, slots=True)
class Closed:
    """The connection has ended; 1006: without a close frame."""

    code: int


@dataclass(frozen=True, slots=True)
class NotOpened:
    """The handshake failed; without a problem there was no answer."""

    problem: ProblemError | None = None


@dataclass(frozen=True, slots=True)
class NoToken:
    """The provider of tokens failed."""

    error: Exception


@dataclass(frozen=True, slots=True)
class End:
    """How a connection ended, and what to do."""

    action: Literal["retry", "renew", "stop"]
    reason: str
    code: int | None = None
    least_s: float = 0.0
    delay_s: tuple[float, float] | None = None
    problem: ProblemError | None = None


CLOSES = {
    1001: End("retry", "restart", delay_s=(0.5, 5.0)),
    1002: End("stop", "protocol-error"),
    1003: End("stop", "protocol-error"),
    1007: End("stop", "protocol-error"),
    1009: End("stop", "protocol-error"),
    1012: End("retry", "restart"),
    1013: End("retry", "full", least_s=5.0),
    4400: End("stop", "malformed"),
    4401: End("renew", "token"),
    4403: End("stop", "forbidden"),
    4404: End("stop", "no-such-board"),
    4429: End("retry", "too-chatty", least_s=30.0),
}
"""What the close codes ask for. All others are retried: later servers may have more."""

REFUSALS = {401: "token", 403: "forbidden", 404: "no-such-board"}
"""Why a handshake was refused, by its status."""

ENDS_OF_SUBSCRIPTIONS = {
    "forbidden",
    "not-subscribed",
    "unauthenticated",
    "uninitialised",
    "unknown-board",
}
"""The errors with a board after which the connection does not have it."""

LONGEST_WAIT_S = 120.0
"""The longest wait that a server can ask for."""

Effect = NeedToken | Open | Write | Receive | Disconnect | Emit | Pause
Outcome = str | bytes | Closed | NotOpened | NoToken | None
Steps = Generator[Effect, Outcome, None]
Connection = Generator[Effect, Outcome, End]


@dataclass(frozen=True, slots=True)
class _Position:
    """Which state of a board was delivered, and which window of it: offset and rows."""

    epoch: int
    seq: int
    window: tuple[int, int | None]


@dataclass(slots=True)
class _Connected:
    """What is known of the present connection."""

    since: float
    has_message: bool = False
    renewal: int = 0
    renew_at: float | None = None
    bye: Bye | None = None
    stale: set[str] = field(default_factory=set)
    boards: dict[str, Board] = field(default_factory=dict)
    """The last of each board that this connection sent: what deltas are applied to."""


class Follower:
    """What the caller wants to see, and what was seen of it."""

    def __init__(
        self,
        url: str,
        board: str | None,
        window: Window,
        user_ids: Iterable[str] | None,
        patience: Patience,
        *,
        has_provider: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.status = Status("connecting")
        self.is_closing = False
        self._url = url
        self._board = board
        self._window = window
        self._watched = None if user_ids is None else list(user_ids)
        self._subscribed: dict[str, Window] = {}
        self._patience = patience
        self._has_provider = has_provider
        self._clock = clock
        self._token: str | None = None
        self._main = board
        self._positions: dict[str, _Position] = {}
        self._viewers: dict[str, int | None] = {}
        self._now = _Connected(clock())
        self._failures = 0
        self._rejections = 0
        self._synced_at = -float("inf")

    # What the caller asks for; each returns the message to send if there is a connection.

    def watch(self, user_ids: Iterable[str]) -> str:
        """Replace the users whose places are delivered."""
        self._watched = list(user_ids)
        return _text(type="watch", userIds=self._watched)

    def subscribe(self, board: str, window: Window) -> str:
        """Follow another board too, or replace the window of one."""
        if board == self._main:
            self._window = window
        else:
            self._subscribed[board] = window
        return _subscription(board, window)

    def unsubscribe(self, board: str) -> str:
        """Stop following a board."""
        self._subscribed.pop(board, None)
        self._forget(board)
        return _text(type="unsubscribe", board=board)

    def _forget(self, board: str) -> None:
        """Forget what was seen of a board; the state is shown again with the next message."""
        self._positions.pop(board, None)
        self._viewers.pop(board, None)
        self._now.boards.pop(board, None)
        self._now.stale.discard(board)

    # How it runs.

    def run(self) -> Steps:
        """Follow until the caller closes. Raises LiveStoppedError if going on is useless."""
        yield Emit(self.status)
        why: TokenReason | None = None
        while True:
            end = yield from self._connect(why)
            yield Disconnect()
            why = None
            if self.is_closing:
                break
            if self._now.has_message and self._age() >= self._patience.settled_s:
                self._failures = self._rejections = 0
            if end.action == "renew":
                self._rejections += 1
                if self._rejections > 1 or not self._has_provider:
                    end = End("stop", "signed-out", end.code, problem=end.problem)
                else:
                    why = "rejected"
                    yield from self._show(Status("reconnecting", end.reason, end.code))
                    continue
            if end.action == "stop":
                yield from self._show(Status("stopped", end.reason, end.code))
                raise LiveStoppedError(end.reason, end.code, end.problem)
            wait_s = self._wait_s(end)
            self._failures += 1
            status = Status("reconnecting", end.reason, end.code, self._failures, wait_s)
            yield from self._show(status)
            yield Pause(wait_s)
            if self.is_closing:
                break
        yield from self._show(Status("stopped", "closed"))

    def _wait_s(self, end: End) -> float:
        if end.delay_s is not None:
            return min(LONGEST_WAIT_S, random.uniform(*end.delay_s))
        patience = self._patience
        ceiling = min(patience.ceiling_s, patience.first_wait_s * 2 ** min(self._failures, 16))
        return min(LONGEST_WAIT_S, end.least_s) + random.uniform(0, max(ceiling, end.least_s))

    def _connect(self, why: TokenReason | None) -> Connection:
        """Connect and deliver until the connection ends."""
        token = yield NeedToken(why, self._token)
        if isinstance(token, NoToken):
            yield Emit(Refused("token-provider", repr(token.error)))
            return End("retry", "token-provider")
        self._token = token if isinstance(token, str) else None
        self._now = _Connected(self._clock())
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        failure = yield Open(self._address(), headers)
        if isinstance(failure, NotOpened):
            return _refusal(failure)
        for text in self._wishes():
            yield Write(text)
        silent_at = self._clock() + self._patience.first_message_s
        while True:
            due = min(silent_at, self._now.renew_at or silent_at)
            received = yield Receive(max(0.0, due - self._clock()))
            if isinstance(received, Closed):
                return self._closed(received.code)
            if isinstance(received, (str, bytes)):
                silent_at = self._clock() + self._patience.silence_s
                yield from self._on_text(received)
            elif self._clock() >= silent_at:
                return End("retry", "silent")
            if self._now.renew_at is not None and self._clock() >= self._now.renew_at:
                yield from self._renew()

    def _closed(self, code: int) -> End:
        end = CLOSES.get(code, End("retry", "lost"))
        bye = self._now.bye
        delay_s = end.delay_s
        if end.action == "retry" and bye is not None:
            if not bye.reconnect:
                return End("stop", "goodbye", code)
            if bye.delay_ms is not UNSET and 0 <= bye.delay_ms[0] <= bye.delay_ms[1]:
                delay_s = (bye.delay_ms[0] / 1000, bye.delay_ms[1] / 1000)
        return End(end.action, end.reason, code, end.least_s, delay_s)

    def _address(self) -> str:
        parts = urlsplit(self._url)
        query = {"board": self._board} if self._board else {}
        if self._window != Window():  # servers before windows refuse the parameters
            query |= {"rows": str(self._window.rows), "offset": str(self._window.offset)}
        whole = "&".join(filter(None, (parts.query, urlencode(query))))
        return urlunsplit(parts._replace(query=whole))

    def _wishes(self) -> list[str]:
        """Return what a new connection has to be told."""
        watched = [] if self._watched is None else [_text(type="watch", userIds=self._watched)]
        # A copy: other threads may subscribe meanwhile.
        return watched + [_subscription(*one) for one in self._subscribed.copy().items()]

    # What arrives.

    def _on_text(self, text: str | bytes) -> Steps:
        try:
            message = parse(text)
        except ValueError as error:
            yield Emit(Refused("bad-frame", str(error)))
        else:
            yield from self._on_message(message)

    def _on_message(self, message: Message | None) -> Steps:
        match message:
            case Board():
                yield from self._on_board(message)
            case Delta():
                yield from self._on_delta(message)
            case Place():
                yield Emit(message)
            case Heartbeat():
                yield from self._on_heartbeat(message)
            case SourceStatus():
                yield from self._on_source(message)
            case AuthExpiring() if self._has_provider:
                self._now.renewal = 0
                yield from self._renew()
            case ServerError():
                yield from self._on_error(message)
            case Bye():
                self._now.bye = message
            case _:  # a later server may send other types
                pass

    def _on_source(self, status: SourceStatus) -> Steps:
        board = status.board or self._main or ""
        if status.state != "stale":
            self._now.stale.discard(board)
        elif self._is_followed(board):
            self._now.stale.add(board)
        yield from self._show_live()

    def _on_error(self, error: ServerError) -> Steps:
        board = error.board
        yield Emit(Refused(error.code, error.detail, board))
        if board and board != self._main and error.code in ENDS_OF_SUBSCRIPTIONS:
            self._forget(board)
            yield from self._show_live()
        if self._now.renewal and self._now.renew_at is None:
            self._renew_later()

    def _on_board(self, board: Board) -> Steps:
        if self._main is None and board.board not in self._subscribed:
            self._main = board.board
        if not self._is_followed(board.board):
            return  # it was on its way when the caller unsubscribed
        yield from self._show_live()
        yield from self._count(board.board, board.viewers)
        yield from self._take(board)

    def _take(self, board: Board) -> Steps:
        """Deliver a board, unless it is older than the one that was delivered."""
        self._now.boards[board.board] = board
        seen = _Position(board.epoch, board.seq, (board.offset, board.rows))
        held = self._positions.get(board.board)
        # Another window can be an older board.
        if held and (held.epoch, held.window) == (seen.epoch, seen.window) and seen.seq < held.seq:
            return
        self._positions[board.board] = seen
        yield Emit(board)

    def _on_delta(self, delta: Delta) -> Steps:
        if not self._is_followed(delta.board):
            return
        yield from self._show_live()
        base = self._now.boards.get(delta.board)
        if base is None:
            return  # a board comes first
        board = delta.applied_to(base)
        if board is not None:
            yield from self._take(replace(board, viewers=self._viewers.get(delta.board)))
        else:
            yield from self._sync_behind(delta)

    def _is_followed(self, board: str) -> bool:
        return self._main is None or board == self._main or board in self._subscribed

    def _on_heartbeat(self, beat: Heartbeat) -> Steps:
        yield from self._show_live()
        if beat.exp is not None:  # the answer to a token, which says nothing of viewers
            self._now.renewal, self._now.renew_at = 0, None
        else:
            yield from self._count(beat.board or self._main or "", beat.viewers)
        yield from self._sync_behind(beat)

    def _count(self, board: str, viewers: int | None) -> Steps:
        if self._viewers.get(board) != viewers:
            self._viewers[board] = viewers
            yield Emit(Viewers(board, viewers))

    def _sync_behind(self, there: Heartbeat | Delta) -> Steps:
        """Ask for a board if the server has a newer one, and was not asked just now."""
        board = there.board or self._main or ""
        held = self._positions.get(board)
        is_newer = held is None or there.epoch != held.epoch or there.seq > held.seq
        if (
            is_newer
            and self._is_followed(board)
            and self._clock() - self._synced_at >= self._patience.sync_s
        ):
            self._synced_at = self._clock()
            other = {} if board == self._main else {"board": board}
            yield Write(_text(type="sync", **other))

    def _renew(self) -> Steps:
        """Send a new token on the connection; ask again later if there is none."""
        self._now.renew_at = None
        self._now.renewal += 1
        token = yield NeedToken("expiring", self._token)
        if isinstance(token, NoToken):
            yield Emit(Refused("token-provider", repr(token.error)))
        if isinstance(token, str) and token != self._token:
            self._token = token
            yield Write(_text(type="auth", token=token))
        else:
            self._renew_later()

    def _renew_later(self) -> None:
        if self._now.renewal < self._patience.renewals:
            self._now.renew_at = self._clock() + self._patience.renewal_s

    # What is shown.

    def _show_live(self) -> Steps:
        self._now.has_message = True
        stale = tuple(sorted(self._now.stale.copy()))  # other threads may unsubscribe
        yield from self._show(Status("stale" if stale else "live", stale=stale))

    def _show(self, status: Status) -> Steps:
        if status != self.status:
            self.status = status
            yield Emit(status)

    def _age(self) -> float:
        return self._clock() - self._now.since


def _refusal(failure: NotOpened) -> End:
    problem = failure.problem
    if problem is None:
        return End("retry", "lost")
    reason = REFUSALS.get(problem.status, "refused")
    if problem.status == 401:
        return End("renew", reason, problem=problem)
    if problem.retry_after_s is not None:
        return End("retry", reason, least_s=problem.retry_after_s, problem=problem)
    return End("stop", reason, problem=problem)


def _subscription(board: str, window: Window) -> str:
    return _text(type="subscribe", board=board, rows=window.rows, offset=window.offset)


def _text(**members: object) -> str:
    return json.encode(members).decode()
