"""The live board as server-sent events: ``GET /api/scores/stream``, for clients without WebSocket.

Admission of a stream is a request like any other; the stream itself has neither the place nor the
time limit of a request (docs/decisions/0007). The first stream of a process starts its
BoardWatcher, unless the first read of the top of a board has done so. The first stream of a board
makes it watch the board.

Invariants: streams are bounded in number and age; a client that reads nothing is disconnected; a
stream ends with its token.
"""

import asyncio
import random
import time
from functools import partial
from typing import Final

from api.edge.cors import Cors
from api.edge.router import StreamResponder
from api.endpoints.sse import Admission, EventChannel, EventStream
from scoreboard.broadcast.admission import ConnectionCounts
from scoreboard.broadcast.close_codes import CloseCode
from scoreboard.broadcast.state import BoardState
from scoreboard.broadcast.watcher import BoardWatcher
from scoreboard.errors import Overloaded, ScoreboardError
from scoreboard.http.query import parse_query
from scoreboard.http.request import Request
from scoreboard.http.response import NOSNIFF
from scoreboard.ledger.name_cache import NameCache
from scoreboard.runtime.lifecycle import jitter
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import Children, counter, gauge
from scoreboard.security.access import can_read, require_read
from scoreboard.security.addresses import request_address, trusted_networks
from scoreboard.security.origins import Origins
from scoreboard.security.tokens import Caller, Verifier, bearer_token
from scoreboard.store.board_directory import BoardDirectory

PATH: Final = "/api/scores/stream"
PARAMETERS: Final = frozenset({"board"})

AGE_SPREAD: Final = 0.2
ENDED_PER_S: Final = 50
"""Streams ended per second when the process stops, unless the drain time is shorter."""

_STREAMS: Final = gauge(
    "event_streams",
    "Event streams open",
    unit="streams",
    normal="below SCOREBOARD_EVENT_STREAMS",
)
_OPENED: Final = Children(
    counter(
        "event_streams_opened_total",
        "Requested event streams by result",
        "result",
        unit="requests",
        normal="nearly all granted",
    ),
    "granted",
)
_ENDED: Final = Children(
    counter(
        "event_streams_ended_total",
        "Ended event streams by reason: a close code, client, too-slow or error",
        "reason",
        unit="streams",
        normal="client and 1012; error: 0",
    ),
    *("client", "too-slow", "error"),
)

_HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
    NOSNIFF,
)


class EventStreams:
    """Admits event streams and serves them."""

    def __init__(
        self,
        settings: Settings,
        verifier: Verifier,
        draining: asyncio.Event,
        directory: BoardDirectory,
        names: NameCache | None = None,
    ) -> None:
        """Take the event that is set when the api drains; nothing connects yet.

        Raises SettingInvalid if the trusted hops or the origins are invalid.
        """
        self._settings = settings
        self._verifier = verifier
        self._draining = draining
        self._hops = trusted_networks(settings.trusted_hops)
        self._origins = Origins(settings.origins)
        self._cors = Cors(settings)
        self._directory = directory
        self._watcher = BoardWatcher(
            settings, self, name="api-stream", directory=directory, names=names
        )
        self._channels: dict[str, EventChannel] = {}
        self._is_wanted = asyncio.Event()
        self._counts = ConnectionCounts(
            "streams",
            capacity=settings.event_streams,
            per_address=settings.viewers_per_address,
            per_subject=settings.viewers_per_subject,
        )
        _STREAMS.set_function(lambda: self.count)

    @property
    def count(self) -> int:
        """The number of open streams."""
        return self._counts.total

    @property
    def watcher(self) -> BoardWatcher:
        """The process's watcher, also for other readers of the boards."""
        return self._watcher

    async def __call__(self, request: Request) -> StreamResponder:
        """Admit a stream; return the function that serves it, which must be called.

        Raises any ScoreboardError for a request that is refused.
        """
        try:
            stream = await self._admit(request)
        except ScoreboardError as error:
            _OPENED[error.code].inc()
            raise
        _OPENED["granted"].inc()
        return partial(self._serve, request, stream)

    def watch(self) -> None:
        """Start watching the boards, unless that has begun."""
        self._is_wanted.set()

    async def run(self) -> None:
        """Watch the boards once that is wanted; end all streams when the api drains."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._end_all())
            await self._is_wanted.wait()
            await self._watcher.run()

    # The listener of BoardWatcher

    def board_changed(self, state: BoardState, noticed_at_s: float) -> None:  # noqa: ARG002
        """Send a new board to its streams."""
        if state.message is not None:
            self._channel(state.board).publish(state.message)

    def least_gap_s(self, board: str) -> float:
        """Return the least time to the next board, from what the last one cost."""
        return self._channel(board).least_gap_s

    def status_changed(self, state: BoardState) -> None:
        """Send whether the board is live to its streams."""
        self._channel(state.board).publish_status(state.status)

    def access_changed(self, state: BoardState) -> None:
        """End the streams that may no longer read the board."""
        for stream in self._channel(state.board).streams:
            if not can_read(stream.admission.caller, is_public=state.is_public):
                stream.finish(CloseCode.FORBIDDEN)

    def is_viewed(self, board: str) -> bool:
        """Return whether a board has streams."""
        channel = self._channels.get(board)
        return channel is not None and bool(channel.streams)

    def board_dropped(self, board: str, *, is_deleted: bool) -> None:
        """Remove the channel of a board; end its streams if the board was deleted."""
        channel = self._channels.pop(board, None)
        if channel is not None and is_deleted:
            for stream in channel.streams:
                stream.finish(CloseCode.BOARD_DELETED)

    def _channel(self, board: str) -> EventChannel:
        found = self._channels.get(board)
        if found is None:
            found = self._channels[board] = EventChannel(board)
        return found

    # Admission

    async def _admit(self, request: Request) -> EventStream:
        """Return a stream that is counted and gets the boards of its channel."""
        headers = request.head.headers
        named = parse_query(request.head.query, PARAMETERS).get("board")
        self._origins.check(headers.get(b"origin"), headers.get(b"host", b""))
        token = bearer_token(headers.get(b"authorization"))
        self._require_not_draining()
        board = (self._directory.known(named) or await self._directory.find(named)).name
        caller = await self._verifier.verify(token) if token else None
        self.watch()
        state = await self._watcher.open(board)
        require_read(caller, is_public=state.is_public)
        self._require_not_draining()  # again: the token and the first read may take seconds
        admission = self._describe(request, board, caller)
        self._counts.admit(admission.address, admission.subject)
        channel = self._channel(board)
        stream = EventStream(admission, channel)
        channel.streams.add(stream)  # before any wait: a board without streams may be dropped
        return stream

    def _require_not_draining(self) -> None:
        """Raise Overloaded while the api drains: the stream would not be ended with the others."""
        if self._draining.is_set():
            raise Overloaded("This server is stopping; connect again")

    def _describe(self, request: Request, board: str, caller: Caller | None) -> Admission:
        headers = request.head.headers
        now_s = asyncio.get_running_loop().time()
        ends_at_s = now_s + jitter(self._settings.event_stream_s, AGE_SPREAD)
        ends_with = CloseCode.RESTART
        if caller is not None:
            token_ends_at_s = now_s + caller.expires_at_s - time.time()
            if token_ends_at_s < ends_at_s:
                ends_at_s, ends_with = token_ends_at_s, CloseCode.TOKEN_EXPIRED
        return Admission(
            board=board,
            address=request_address(request.peer[0], headers, self._hops),
            caller=caller,
            ends_at_s=ends_at_s,
            ends_with=ends_with,
            last_event_id=headers.get(b"last-event-id", b"").decode("latin-1"),
        )

    # One stream

    async def _serve(self, request: Request, stream: EventStream) -> None:
        admission, reason = stream.admission, "error"
        try:
            reason = await self._write(request, stream)
        finally:
            _ENDED[reason].inc()
            stream.leave()
            self._counts.release(admission.address, admission.subject)

    async def _write(self, request: Request, stream: EventStream) -> str:
        """Write a stream until it ends; return the reason."""
        settings = self._settings
        try:
            headers = [
                *_HEADERS,
                (b"x-request-id", request.id.encode()),
                *self._cors.headers(request.head),
            ]
            response = request.start_stream(200, headers, send_s=settings.slow_viewer_s)
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(_watch_disconnect(request, stream))
                try:
                    reason = await stream.run(response.write, settings.heartbeat_s)
                    await response.end()
                finally:
                    watching.cancel()
        except* TimeoutError:
            reason = "too-slow"
        except* ConnectionError:
            reason = "client"
        return reason

    async def _end_all(self) -> None:
        await self._draining.wait()
        streams = [one for channel in self._channels.values() for one in channel.streams]
        random.shuffle(streams)
        spread_s = min(self._settings.drain_s / 2, len(streams) / ENDED_PER_S)
        for stream in streams:
            stream.finish(CloseCode.RESTART)
            await asyncio.sleep(spread_s / len(streams))


async def _watch_disconnect(request: Request, stream: EventStream) -> None:
    await request.wait_disconnected()
    stream.note_disconnect()
