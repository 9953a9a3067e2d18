"""Viewers of a board on raw WebSockets: they connect, note when boards arrive, and answer pings.

Only what a load needs of RFC 6455 is here: unmasked frames of the server, without fragments.
"""

import asyncio
import base64
import os
import time
from array import array
from collections import Counter
from typing import Any, Final

from cli.bench.generator.http_load import CONNECT_S, Address
from cli.bench.generator.latencies import Latencies
from scoreboard.broadcast.messages import SUBPROTOCOL

RETRY_S: Final = 0.1
HANDSHAKE_S: Final = 10.0
_TEXT, _CLOSE, _PING, _PONG = 0x81, 0x88, 0x89, 0x8A
_BOARD: Final = b'{"type":"leaderboard"'
_SEQ: Final = b'"seq":'


class Viewers:
    """All viewers of one load."""

    def __init__(self, address: Address, path: str, token: str) -> None:
        self._address = address
        authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        self._request = (
            f"GET {path} HTTP/1.1\r\nHost: {address.host_header}\r\nConnection: Upgrade\r\n"
            f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n{authorization}"
        )
        self._open: set[_Viewer] = set()
        self.handshakes = Latencies()
        self.outcomes: Counter[str] = Counter()
        """Outcomes of handshakes by status, and connections lost afterwards."""
        self.frames = 0
        """Boards that have arrived at any viewer."""
        self.arrivals: dict[tuple[int, int], array[float]] = {}
        """When viewers that had one seq got the next, by both."""

    @property
    def count(self) -> int:
        """How many are connected."""
        return len(self._open)

    async def join(self) -> None:
        """Connect one viewer; its outcome is counted."""
        failure = await self._connect()
        if failure:
            self.outcomes[failure] += 1

    async def join_first(self, within_s: float) -> None:
        """Connect the first viewer; try again while the server answers 503.

        It may not yet have read a new board. Only the last outcome is counted.
        """
        end_s = time.perf_counter() + within_s
        while failure := await self._connect():
            if failure != "handshake 503" or time.perf_counter() > end_s:
                self.outcomes[failure] += 1
                return
            await asyncio.sleep(RETRY_S)

    async def _connect(self) -> str:
        """Connect one viewer; return why it failed, or nothing."""
        began_s = time.perf_counter()
        try:
            async with asyncio.timeout(CONNECT_S + HANDSHAKE_S):
                _, viewer = await asyncio.get_running_loop().create_connection(
                    lambda: _Viewer(self), self._address.host, self._address.port,
                    ssl=self._address.tls,
                )  # fmt: skip
                status = await viewer.shake_hands(self._handshake())
        except TimeoutError:
            return "timeout"
        except OSError:
            return "connection error"
        if status != 101:
            viewer.close()
            return f"handshake {status}"
        self.handshakes.record(time.perf_counter() - began_s)
        self._open.add(viewer)
        return ""

    def close(self) -> None:
        """Disconnect all."""
        viewers, self._open = self._open, set()
        for viewer in viewers:
            viewer.close()

    def on_board(self, before: int, seq: int, now_s: float) -> None:
        """Record that the board ``seq`` has arrived at a viewer that had ``before``."""
        self.frames += 1
        times = self.arrivals.get((before, seq))
        if times is None:
            times = self.arrivals[before, seq] = array("d")
        times.append(now_s)

    def on_lost(self, viewer: "_Viewer") -> None:
        """Count a viewer that the server disconnected."""
        if viewer in self._open:
            self._open.discard(viewer)
            self.outcomes["viewer lost"] += 1

    def _handshake(self) -> bytes:
        key = base64.b64encode(os.urandom(16)).decode()
        return f"{self._request}Sec-WebSocket-Key: {key}\r\n\r\n".encode()


class _Viewer(asyncio.Protocol):
    __slots__ = ("_buffer", "_seq", "_status", "_transport", "_viewers")

    def __init__(self, viewers: Viewers) -> None:
        self._viewers = viewers
        self._transport: Any = None
        self._buffer = b""
        self._seq = -1
        self._status: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._status is not None and not self._status.done():
            self._status.set_exception(exc if isinstance(exc, OSError) else ConnectionError())
        self._viewers.on_lost(self)

    async def shake_hands(self, request: bytes) -> int:
        """Send the request and return the status of the response."""
        self._status = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._status

    def close(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        if self._status is not None and not self._status.done():
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._buffer = data
                return
            self._status.set_result(int(data[9:12]))
            data = data[end + 4 :]
        self._buffer = data[self._read_frames(data) :]

    def _read_frames(self, data: bytes) -> int:
        """Handle the complete frames; return where they end."""
        at = 0
        while len(data) - at >= 2:
            size, start = data[at + 1], at + 2
            if size == 126:
                size, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
            if size == 127 or len(data) < start + size:
                break
            if data[at] == _TEXT:
                if data.startswith(_BOARD, start):
                    self._on_board(data, start)
            elif data[at] == _PING:
                # A mask of zeros leaves the payload as it is.
                head = bytes((_PONG, 0x80 | size, 0, 0, 0, 0))
                self._transport.write(head + data[start : start + size])
            elif data[at] == _CLOSE:
                self._transport.close()
            at = start + size
        return at

    def _on_board(self, data: bytes, start: int) -> None:
        where = data.find(_SEQ, start) + len(_SEQ)
        seq = int(data[where : data.index(b",", where)])
        self._viewers.on_board(self._seq, seq, time.perf_counter())
        self._seq = seq
