"""The client for asyncio. It does what `_exchange` and `_follow` yield."""

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol

from . import _calls, _exchange, _follow
from ._calls import Call
from ._exchange import NeedToken, Pause, Retries, Send
from ._follow import (
    SUBPROTOCOLS,
    Closed,
    Emit,
    Follower,
    NoToken,
    NotOpened,
    Open,
    Patience,
    Receive,
    Window,
    Write,
)
from ._models import BulkResult, UpdateItem
from ._shared import close_code, live_address, refused
from ._tokens import TokenReason, Tokens
from .events import Event, Status

P = ParamSpec("P")
T = TypeVar("T")
TokenProvider = Callable[[TokenReason], Awaitable[str | None] | str | None]
"""Returns a current token, or None for none; called with the reason why it is asked."""


def _method(
    make: Callable[P, Call[T]],
) -> "Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]":
    """Return a method that makes a call and sends it."""

    @functools.wraps(make)
    async def method(self: "AsyncClient", *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.call(make(*args, **kwargs))

    return method


class AsyncClient:
    """A client of one deployment, for the tasks of one event loop.

    `token` is a JWT, or a function or coroutine function that returns a current one. `live_url` is
    the address of the streamer, by default `/ws/scoreboard` of `url`.
    """

    def __init__(
        self,
        url: str,
        token: str | TokenProvider | None = None,
        *,
        live_url: str | None = None,
        timeout_s: float = 15.0,
        retries: Retries | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._live_url = live_url or live_address(self._url)
        self._timeout_s = timeout_s
        self._retries = retries or Retries()
        self._provider = token if callable(token) else None
        self._tokens = Tokens(
            None if callable(token) else token, has_provider=self._provider is not None
        )
        self._lock = asyncio.Lock()
        self._http = httpx.AsyncClient(timeout=timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections of requests; live boards are closed by themselves."""
        await self._http.aclose()

    update = _method(_calls.update)
    leaderboard = _method(_calls.leaderboard)
    standing = _method(_calls.standing)
    own_standing = _method(_calls.own_standing)
    standings = _method(_calls.standings)
    rank_of_score = _method(_calls.rank_of_score)
    cutoff = _method(_calls.cutoff)
    seasons = _method(_calls.seasons)
    history = _method(_calls.history)
    boards = _method(_calls.boards)
    board = _method(_calls.board)

    async def update_many(self, updates: Sequence[UpdateItem]) -> list[BulkResult]:
        """Count any number of actions, each by itself; return a result for each, in order.

        Needs the scope of game servers. A result with `problem` was refused; one that also has
        `retry_after` may succeed later. After an exception, call it again with the same actions.
        """
        return await self._run(_exchange.exchange_many(updates, self._retries))

    async def call(self, call: Call[T]) -> T:
        """Send a call until it is answered."""
        return await self._run(_exchange.exchange(call, self._retries))

    def live(
        self,
        board: str | None = None,
        *,
        rows: int = 10,
        offset: int = 0,
        watch: Iterable[str] | None = None,
        patience: Patience | None = None,
    ) -> "AsyncLive":
        """Follow a board: `rows` rows (10 to 100) from `offset`, and the places of up to 5 users.

        With `watch=None` the server chooses whose place to send: that of the token's user.
        """
        follower = Follower(
            self._live_url,
            board,
            Window(rows, offset),
            watch,
            patience or Patience(),
            has_provider=self._provider is not None,
        )
        return AsyncLive(follower, self._get_token, self._timeout_s)

    async def _get_token(self, need: NeedToken) -> str | None:
        """Return the token to use, from the provider where that is due."""
        async with self._lock:
            reason = self._tokens.reason(need.why, need.used)
            if reason is not None and self._provider is not None:
                token = self._provider(reason)
                self._tokens.current = await token if inspect.isawaitable(token) else token
            return self._tokens.current

    async def _run(self, steps: "_exchange.Exchange[T]") -> T:
        outcome: _exchange.Outcome = None
        while True:
            try:
                effect = steps.send(outcome)
            except StopIteration as done:
                return done.value
            match effect:
                case NeedToken():
                    outcome = await self._get_token(effect)
                case Send(call, headers):
                    outcome = await self._send(call, headers)
                case Pause(seconds):
                    outcome = await asyncio.sleep(seconds)

    async def _send(
        self, call: Call[object], headers: dict[str, str]
    ) -> _exchange.Response | _exchange.Lost:
        try:
            response = await self._http.request(
                "GET" if call.body is None else "POST",
                self._url + call.path,
                params=call.query or None,
                content=call.body,
                headers=headers,
            )
        except httpx.UnsupportedProtocol:
            raise
        except httpx.TransportError as error:
            return _exchange.Lost(error)
        return _exchange.Response(response.status_code, response.headers, response.content)


class AsyncLive:
    """A live board: iterate over its events, once. Other tasks may call the other methods.

    The iteration ends after `aclose()`, and raises LiveStoppedError if going on is useless.
    """

    def __init__(
        self,
        follower: Follower,
        token: Callable[[NeedToken], Awaitable[str | None]],
        timeout_s: float,
    ) -> None:
        self._follower = follower
        self._token = token
        self._timeout_s = timeout_s
        self._closing = asyncio.Event()
        self._socket: ClientConnection | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    @property
    def status(self) -> Status:
        """The state of the connection, as last delivered."""
        return self._follower.status

    async def watch(self, *user_ids: str) -> None:
        """Deliver the places of these users (up to 5) instead of those before."""
        await self._write(self._follower.watch(user_ids))

    async def subscribe(self, board: str, *, rows: int = 10, offset: int = 0) -> None:
        """Follow another board too (up to 8), or another window of a board."""
        await self._write(self._follower.subscribe(board, Window(rows, offset)))

    async def unsubscribe(self, board: str) -> None:
        """Stop following another board."""
        await self._write(self._follower.unsubscribe(board))

    async def aclose(self) -> None:
        """Close the connection and end the iteration."""
        self._follower.is_closing = True
        self._closing.set()
        await self._disconnect()

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield events until the end."""
        steps = self._follower.run()
        outcome: _follow.Outcome = None
        try:
            while True:
                try:
                    effect = steps.send(outcome)
                except StopIteration:
                    return
                outcome = None
                if isinstance(effect, Emit):
                    yield effect.event
                else:
                    outcome = await self._do(effect)
        finally:
            await self._disconnect()

    async def _do(self, effect: "_follow.Effect") -> "_follow.Outcome":
        match effect:
            case NeedToken():
                try:
                    return await self._token(effect)
                except Exception as error:  # noqa: BLE001  of the caller's provider
                    return NoToken(error)
            case Open(url, headers):
                return await self._open(url, headers)
            case Write(text):
                await self._write(text)
            case Receive(seconds):
                return await self._receive(seconds)
            case Pause(seconds):
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), seconds)
            case _:
                await self._disconnect()
        return None

    async def _open(self, url: str, headers: dict[str, str]) -> NotOpened | None:
        try:
            self._socket = await connect(
                url,
                subprotocols=[Subprotocol(name) for name in SUBPROTOCOLS],
                additional_headers=headers,
                compression=None,
                open_timeout=self._timeout_s,
                ping_interval=None,  # heartbeats show a lost connection
                close_timeout=1,
            )
        except InvalidStatus as error:
            return refused(error)
        except (OSError, EOFError, InvalidHandshake):
            return NotOpened()
        return None

    async def _receive(self, seconds: float) -> str | bytes | Closed | None:
        socket = self._socket
        if socket is None or self._closing.is_set():
            return Closed(1000)
        try:
            return await asyncio.wait_for(socket.recv(), seconds)
        except TimeoutError:
            return None
        except ConnectionClosed as closed:
            return Closed(close_code(closed))

    async def _write(self, text: str) -> None:
        socket = self._socket
        if socket is not None:
            with suppress(ConnectionClosed):
                await socket.send(text)

    async def _disconnect(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket.close()
