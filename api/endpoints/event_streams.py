"""The live board as server-sent events: ``GET /api/scores/stream``, for who cannot WebSocket.

A direct handler: admitting a stream is a request like any other, and what follows has neither the
end nor the time limit of one (docs/decisions/0007). One relay per process, begun by the first
stream. What stays true: streams are bounded in number and age; a peer that takes nothing is hung up
on; a stream ends with its token.
"""

import asyncio
import random
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import Final

from api.edge.authentication import require_reader
from api.edge.router import Streaming
from api.endpoints.fast_update import PARAMETERS
from api.endpoints.sse import Channel, EventStream, Grant
from scoreboard.broadcast.close_codes import CloseCode
from scoreboard.broadcast.frames import Status
from scoreboard.broadcast.state import BoardState
from scoreboard.broadcast.watcher import BoardWatcher
from scoreboard.errors import (
    Overloaded,
    ScoreboardError,
    TooManyConnections,
    Unauthenticated,
    Uninitialised,
    UnknownBoard,
)
from scoreboard.http.query import parse_query
from scoreboard.http.request import Request
from scoreboard.http.response import NOSNIFF
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import counter, gauge
from scoreboard.security.addresses import client_address, trusted_networks
from scoreboard.security.origins import Origins
from scoreboard.security.tokens import READ, Caller, Verifier, bearer_token

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
    (b"x-accel-buffering", b"no"),
    NOSNIFF,
)


class EventStreams:
    """Admits event streams and serves them."""

    def __init__(self, settings: Settings, verifier: Verifier, draining: asyncio.Event) -> None:
        """Take the event that is set when the api drains; connects to nothing yet.

        Raises SettingInvalid where the trusted hops or the origins cannot be read.
        """
        self._settings = settings
        self._verifier = verifier
        self._draining = draining
        self._hops = trusted_networks(settings.trusted_hops)
        self._origins = Origins(settings.origins)
        self._relay = BoardWatcher(settings, self, name="api-stream")
        self._channels = {board: Channel(board) for board in settings.boards}
        self._is_wanted = asyncio.Event()
        self._addresses: Counter[str] = Counter()
        self._subjects: Counter[str] = Counter()
        _STREAMS.set_function(lambda: self.count)

    @property
    def count(self) -> int:
        """Count the streams that are open."""
        return self._addresses.total()

    async def __call__(self, request: Request) -> Streaming:
        """Admit a stream; return what serves it, which must be run.

        Raises any ScoreboardError where it is not admitted.
        """
        try:
            grant = await self._admit(request)
        except ScoreboardError as error:
            _OPENED.labels(error.code).inc()
            raise
        _OPENED.labels("granted").inc()
        return partial(self._serve, request, grant)

    async def run(self) -> None:
        """Follow the boards once somebody wants them, and end all streams when the api drains."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._end_all())
            await self._is_wanted.wait()
            await self._relay.run()

    # The relay's listener

    def board_changed(self, feed: BoardState, noticed_at_s: float) -> None:  # noqa: ARG002
        """Wake the board's streams."""
        self._channels[feed.board].show(feed)

    def status_changed(self, feed: BoardState) -> None:
        """Tell the board's streams whether it is live."""
        status = Status("stale", feed.trouble) if feed.trouble else Status("live")
        self._channels[feed.board].tell(status)

    def access_changed(self, feed: BoardState) -> None:
        """End the streams that only the board's being public had let in."""
        for stream in self._channels[feed.board].streams:
            caller = stream.grant.caller
            if not feed.is_public and not (caller and caller.has(READ)):
                stream.finish(CloseCode.FORBIDDEN)

    # Who may have a stream

    async def _admit(self, request: Request) -> Grant:
        headers = request.head.headers
        board = parse_query(request.head.query, PARAMETERS).get("board", self._settings.boards[0])
        self._origins.check(headers.get(b"origin"), headers.get(b"host", b""))
        token = bearer_token(headers.get(b"authorization"))
        if self._draining.is_set():
            raise Overloaded("This server is stopping; connect again")
        if board not in self._channels:
            raise UnknownBoard
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
        grant = self._grant(request, board, caller)
        self._take(grant)
        return grant

    def _grant(self, request: Request, board: str, caller: Caller | None) -> Grant:
        headers = request.head.headers
        now_s = asyncio.get_running_loop().time()
        spread = random.uniform(1 - AGE_SPREAD, 1 + AGE_SPREAD)  # noqa: S311 (jitter)
        ends_at_s, ends_with = now_s + self._settings.event_stream_s * spread, CloseCode.RESTART
        if caller is not None:
            token_ends_at_s = now_s + caller.expires_at_s - time.time()
            if token_ends_at_s < ends_at_s:
                ends_at_s, ends_with = token_ends_at_s, CloseCode.TOKEN_EXPIRED
        forwarded = headers.get(b"x-forwarded-for", b"").decode("latin-1")
        return Grant(
            board=board,
            address=client_address(request.peer[0], [forwarded], self._hops),
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
            raise TooManyConnections(
                f"One address may have {most} streams", retry_after_s=RETRY_AFTER_S
            )
        most = settings.viewers_per_subject
        if grant.caller is not None and self._subjects[grant.caller.subject] >= most:
            raise TooManyConnections(
                f"One user may have {most} streams", retry_after_s=RETRY_AFTER_S
            )
        self._addresses[grant.address] += 1
        if grant.caller is not None:
            self._subjects[grant.caller.subject] += 1

    def _give_back(self, grant: Grant) -> None:
        _decrement(self._addresses, grant.address)
        if grant.caller is not None:
            _decrement(self._subjects, grant.caller.subject)

    # One stream

    async def _serve(self, request: Request, grant: Grant) -> None:
        channel = self._channels[grant.board]
        stream = EventStream(grant, channel)
        channel.streams.add(stream)
        reason = "error"
        try:
            reason = await self._follow(request, stream)
        finally:
            _ENDED.labels(reason).inc()
            channel.streams.discard(stream)
            self._give_back(grant)

    async def _follow(self, request: Request, stream: EventStream) -> str:
        """Write a stream to its end; return why it ended."""
        settings = self._settings
        try:
            headers = [*_HEADERS, (b"x-request-id", request.id.encode())]
            answer = request.start_stream(200, headers, send_s=settings.slow_viewer_s)
            async with asyncio.TaskGroup() as tasks:
                leaving = tasks.create_task(_watch_leaving(request, stream))
                try:
                    reason = await stream.follow(answer.write, settings.heartbeat_s)
                    await answer.end()
                finally:
                    leaving.cancel()
        except* TimeoutError:
            reason = "too-slow"
        except* ConnectionError:
            reason = "client"
        return reason

    async def _end_all(self) -> None:
        await self._draining.wait()
        streams = [one for channel in self._channels.values() for one in channel.streams]
        random.shuffle(streams)
        spread_s = min(self._settings.drain_s / 2, len(streams) / HURRY_PER_S)
        for stream in streams:
            stream.finish(CloseCode.RESTART)
            await asyncio.sleep(spread_s / len(streams))


async def _watch_leaving(request: Request, stream: EventStream) -> None:
    await request.wait_disconnected()
    stream.leave()


def _decrement(counts: Counter[str], name: str) -> None:
    counts[name] -= 1
    if counts[name] <= 0:
        del counts[name]
