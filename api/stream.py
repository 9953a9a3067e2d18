"""The live board as server-sent events: ``GET /api/scores/stream``, for who cannot WebSocket.

An ASGI application around the rest of the api, because a stream has neither the end nor the time
limit of a request (docs/decisions/0007). One relay per process, begun by the first stream. What
stays true: streams are bounded in number and age; a peer that takes nothing is hung up on; a stream
ends with its token.
"""

import asyncio
import itertools
import random
import secrets
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from api.authentication import bearer_of, require_reader
from api.direct import board_of
from api.events import Channel, Grant, Stream
from api.middleware import REQUEST_ID, AsgiApp, Receive, Scope, Send
from api.problems import MEDIA_TYPE, MethodNotAllowed, body_of, headers_of, status_of
from scoreboard.addresses import client_address, trusted_networks
from scoreboard.auth import READ, Caller, Verifier
from scoreboard.endings import CloseCode
from scoreboard.errors import (
    Overloaded,
    RateLimited,
    ScoreboardError,
    Unauthenticated,
    Unavailable,
    Uninitialised,
    UnknownBoard,
)
from scoreboard.feed import Feed
from scoreboard.frames import Status
from scoreboard.relay import Relay
from scoreboard.settings import Settings
from scoreboard.sockets import bound_sending
from scoreboard.telemetry import counter, gauge

PATH: Final = "/api/scores/stream"

FIRST_READ_S: Final = 2.0
"""The first stream of a process waits this long for its board."""

AGE_SPREAD: Final = 0.2
HURRY_PER_S: Final = 50
"""Streams ended a second when the process stops, unless its grace is shorter."""

RETRY_AFTER_S: Final = 30

_STREAMS = gauge("event_streams", "Event streams open")
_OPENED = counter("event_streams_opened_total", "Event streams by how they began", "result")
_ENDED = counter("event_streams_ended_total", "Event streams by why they ended", "reason")

_HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-accel-buffering", b"no"),
    (b"connection", b"close"),
)


class EventStream:
    """Serves the event stream and leaves every other request to ``inner``."""

    def __init__(
        self, settings: Settings, verifier: Verifier, inner: AsgiApp, draining: asyncio.Event
    ) -> None:
        """Take the rest of the api, and the event set when it drains; connects to nothing yet.

        Raises SettingInvalid where the trusted hops cannot be read.
        """
        self._settings = settings
        self._verifier = verifier
        self._inner = inner
        self._draining = draining
        self._hops = trusted_networks(settings.trusted_hops)
        self._relay = Relay(settings, self, name="api-stream")
        self._channels = {board: Channel(board) for board in settings.boards}
        self._is_wanted = asyncio.Event()
        self._addresses: Counter[str] = Counter()
        self._subjects: Counter[str] = Counter()
        self._id_prefix = secrets.token_hex(6)
        self._id_numbers = itertools.count(1)
        _STREAMS.set_function(lambda: self.count)

    @property
    def count(self) -> int:
        """Count the streams that are open."""
        return self._addresses.total()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http" or scope["path"] != PATH:
            await self._inner(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = self._request_id(headers)
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                grant = await self._admit(scope, headers)
        except (ScoreboardError, TimeoutError) as error:
            known = error if isinstance(error, ScoreboardError) else Unavailable()
            _OPENED.labels(known.code).inc()
            await _refuse(send, known, request_id)
            return
        _OPENED.labels("granted").inc()
        channel = self._channels[grant.board]
        stream = Stream(grant, channel)
        channel.streams.add(stream)
        try:
            await self._serve(stream, receive, send, request_id)
        finally:
            channel.streams.discard(stream)
            self._give_back(grant)

    async def run(self) -> None:
        """Follow the boards once somebody wants them, and end all streams when the api drains."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._end_all())
            await self._is_wanted.wait()
            await self._relay.run()

    # The relay's listener

    def board_changed(self, feed: Feed, noticed_at_s: float) -> None:  # noqa: ARG002
        """Wake the board's streams."""
        self._channels[feed.board].show(feed)

    def status_changed(self, feed: Feed) -> None:
        """Tell the board's streams whether it is live."""
        status = Status("stale", feed.trouble) if feed.trouble else Status("live")
        self._channels[feed.board].tell(status)

    def access_changed(self, feed: Feed) -> None:
        """End the streams that only the board's being public had let in."""
        for stream in self._channels[feed.board].streams:
            caller = stream.grant.caller
            if not feed.is_public and not (caller and caller.has(READ)):
                stream.finish(CloseCode.FORBIDDEN)

    # Who may have a stream

    async def _admit(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Grant:
        if scope["method"] != "GET":
            raise MethodNotAllowed("Use GET", allow="GET")
        if self._draining.is_set():
            raise Overloaded("This server is stopping; connect again")
        board = board_of(scope["query_string"]) or self._settings.boards[0]
        if board not in self._channels:
            raise UnknownBoard
        token = bearer_of(headers.get(b"authorization"))
        caller = await self._verifier.verify(token) if token else None
        feed = self._relay.feeds[board]
        if feed.frame is None:
            self._is_wanted.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST_READ_S):
                    await self._relay.settle()
        if feed.frame is None:
            raise Uninitialised
        if not feed.is_public:
            if caller is None:
                raise Unauthenticated("This board is not public: connect with a token")
            require_reader(caller)
        grant = self._grant(scope, headers, board, caller)
        self._take(grant)
        return grant

    def _grant(
        self, scope: Scope, headers: Mapping[bytes, bytes], board: str, caller: Caller | None
    ) -> Grant:
        peer = scope.get("client")
        forwarded = [
            value.decode("latin-1")
            for name, value in scope["headers"]
            if name == b"x-forwarded-for"
        ]
        now_s = asyncio.get_running_loop().time()
        spread = random.uniform(1 - AGE_SPREAD, 1 + AGE_SPREAD)  # noqa: S311 (jitter)
        ends_at_s, ends_with = now_s + self._settings.event_stream_s * spread, CloseCode.RESTART
        if caller is not None:
            token_ends_at_s = now_s + caller.expires_at_s - time.time()
            if token_ends_at_s < ends_at_s:
                ends_at_s, ends_with = token_ends_at_s, CloseCode.TOKEN_EXPIRED
        return Grant(
            board=board,
            address=client_address(peer[0] if peer else "", forwarded, self._hops),
            caller=caller,
            ends_at_s=ends_at_s,
            ends_with=ends_with,
            last_event_id=headers.get(b"last-event-id", b"").decode("latin-1"),
        )

    def _take(self, grant: Grant) -> None:
        settings = self._settings
        if self.count >= settings.event_streams:
            raise Overloaded("This server has all the streams it may hold")
        most = settings.viewers_per_address
        if self._addresses[grant.address] >= most:
            raise RateLimited(f"One address may have {most} streams", retry_after_s=RETRY_AFTER_S)
        most = settings.viewers_per_subject
        if grant.caller is not None and self._subjects[grant.caller.subject] >= most:
            raise RateLimited(f"One user may have {most} streams", retry_after_s=RETRY_AFTER_S)
        self._addresses[grant.address] += 1
        if grant.caller is not None:
            self._subjects[grant.caller.subject] += 1

    def _give_back(self, grant: Grant) -> None:
        _decrement(self._addresses, grant.address)
        if grant.caller is not None:
            _decrement(self._subjects, grant.caller.subject)

    # One stream

    async def _serve(self, stream: Stream, receive: Receive, send: Send, request_id: str) -> None:
        transport = _transport_of(send)
        if transport is not None:
            # What is not sent stays here, where the newest can still take its place.
            transport.set_write_buffer_limits(high=0)
            connection = transport.get_extra_info("socket")
            with suppress(OSError, ValueError):  # it may be gone already
                bound_sending(connection)
        settings, reason = self._settings, "error"

        async def write(data: bytes) -> None:
            async with asyncio.timeout(settings.slow_viewer_s):
                await send(_body(data))

        try:
            async with asyncio.TaskGroup() as tasks:
                leaving = tasks.create_task(_watch_leaving(receive, stream))
                try:
                    headers = [*_HEADERS, (b"x-request-id", request_id.encode())]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                    reason = await stream.follow(write, settings.heartbeat_s)
                    await send(_body(b"", is_last=True))
                finally:
                    leaving.cancel()
        except* TimeoutError:
            reason = "too-slow"
            if transport is not None:
                transport.abort()
        finally:
            _ENDED.labels(reason).inc()

    async def _end_all(self) -> None:
        await self._draining.wait()
        streams = [one for channel in self._channels.values() for one in channel.streams]
        random.shuffle(streams)
        spread_s = min(self._settings.drain_s / 2, len(streams) / HURRY_PER_S)
        for stream in streams:
            stream.finish(CloseCode.RESTART)
            await asyncio.sleep(spread_s / len(streams))

    def _request_id(self, headers: Mapping[bytes, bytes]) -> str:
        given = headers.get(b"x-request-id") or headers.get(b"x-kong-request-id")
        if given is not None and REQUEST_ID.fullmatch(given):
            return given.decode("ascii")
        return f"{self._id_prefix}-{next(self._id_numbers):x}"


async def _watch_leaving(receive: Receive, stream: Stream) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    stream.leave()


def _body(data: bytes, *, is_last: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": not is_last}


def _transport_of(send: Send) -> Any:  # noqa: ANN401 (the server's; ASGI has no word for it)
    """Give the connection under a request, where the server is one that lets it be found.

    ASGI knows no way to hang up on a peer that takes nothing: ``send`` just waits, and an ended
    answer waits for the peer as well.
    """
    return getattr(getattr(send, "__self__", None), "transport", None)


async def _refuse(send: Send, error: ScoreboardError, request_id: str) -> None:
    body = body_of(error, request_id)
    headers = [
        (b"content-type", MEDIA_TYPE.encode()),
        *headers_of(error),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", request_id.encode()),
        (b"x-content-type-options", b"nosniff"),
    ]
    start = {"type": "http.response.start", "status": status_of(type(error)), "headers": headers}
    await send(start)
    await send(_body(body, is_last=True))


def _decrement(counts: Counter[str], name: str) -> None:
    counts[name] -= 1
    if counts[name] <= 0:
        del counts[name]
