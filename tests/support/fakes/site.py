"""A fake streamer and web server, which tests control to bring the page into any state.

    async with FakeSite() as site:
        await site.send_board(("alice", 30), ("bob", 20))     # the next seq, to every viewer
        await site.send(type="status", state="stale")
        await site.close_viewers(4401)

The streamer speaks both forms of the subprotocol on one port; the web server serves `web/` on
another, as the api does: the page with merged files, and its policy. `api_replies` maps paths to
answers of the api.
tests/browser/test_real_system.py uses the real services.
"""

import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from api.endpoints.merged_page import MergedPage
from api.endpoints.static_files import EMBED, OVERLAY
from api.endpoints.static_files import content_security_policy as page_policy
from scoreboard.runtime.resources import web_path
from scoreboard.runtime.settings import load

HOST = "127.0.0.1"
# For tests of the client alone; the icon prevents a request for /favicon.ico.
BLANK = b'<!doctype html><title>blank</title><link rel="icon" href="data:,">'
# A page of somebody else, without a policy.
FOREIGN = '<!doctype html><title>foreign</title><link rel="icon" href="data:,">'
FOREIGN_PATH = "/foreign.html"

FRAME = '<iframe src="{}" width=480 height=300 sandbox="allow-scripts allow-same-origin"></iframe>'
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
}


@dataclass
class Handshake:
    """A handshake request of a viewer."""

    path: str
    board: str | None
    subprotocols: list[str]

    @property
    def token(self) -> str | None:
        """The token offered, if any."""
        bearers = [name for name in self.subprotocols if name.startswith("bearer.")]
        return bearers[0].removeprefix("bearer.") if bearers else None


@dataclass
class FakeSite:
    """Both servers; an async context manager."""

    epoch: int = 1
    seq: int = 0
    board: str = "main"
    rows: list[dict[str, Any]] = field(default_factory=list)
    reject_status: HTTPStatus | None = None
    sends_snapshot: bool = True
    answers_sync: bool = True
    api_status: HTTPStatus = HTTPStatus.NOT_FOUND
    handshakes: list[Handshake] = field(default_factory=list)
    received: list[dict[str, Any]] = field(default_factory=list)
    close_at_once: int | None = None
    config: dict[str, Any] | None = None
    api_replies: dict[str, Any] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    frame_origins: str = ""
    """The origins whose pages may show `/embed`."""
    forms: tuple[str, ...] = ("scoreboard.v1", "scoreboard.v1.delta")
    """The subprotocols that the streamer knows; the first one that is offered is selected."""
    framed: str = ""
    """The address of the frame of `/foreign.html`; empty: it has none."""
    viewers: set[ServerConnection] = field(default_factory=set)
    _pages: Server | None = None
    _streamer: Server | None = None
    _ws_port: int = 0

    async def __aenter__(self) -> Self:
        await self.start_streamer()
        self._pages = await serve(
            self._serve_viewer,
            HOST,
            0,
            process_request=self._serve_page,
            select_subprotocol=self._select_subprotocol,
            close_timeout=0.5,
        )
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop_streamer()
        if self._pages is not None:
            self._pages.close()
            await self._pages.wait_closed()

    @property
    def url(self) -> str:
        """The URL of the page."""
        assert self._pages is not None
        return f"http://{HOST}:{_port_of(self._pages)}/"

    @property
    def foreign_url(self) -> str:
        """The URL of a page of another origin without a policy, which may have a frame."""
        return f"{self.url.replace(HOST, 'localhost')}foreign.html"

    @property
    def ws_url(self) -> str:
        """The URL of the fake streamer."""
        return f"ws://{HOST}:{self._ws_port}/ws/scoreboard"

    async def start_streamer(self) -> None:
        """Listen for viewers; after a stop, on the same port."""
        self._streamer = await serve(
            self._serve_viewer,
            HOST,
            self._ws_port,
            process_request=self._handle_handshake,
            select_subprotocol=self._select_subprotocol,
            ping_interval=None,
            close_timeout=0.5,
        )
        self._ws_port = _port_of(self._streamer)

    async def stop_streamer(self) -> None:
        """Close the port and abort every connection."""
        if self._streamer is not None:
            for viewer in tuple(self.viewers):
                viewer.transport.abort()
            self._streamer.close()
            await self._streamer.wait_closed()
            self._streamer = None

    async def send_board(self, *rows: tuple[str, int], seq: int | None = None) -> None:
        """Send these players, best first, to every viewer, now and after later handshakes."""
        self.seq = self.seq + 1 if seq is None else seq
        self.rows = [
            {"rank": rank, "userId": user_id, "score": score}
            for rank, (user_id, score) in enumerate(rows, start=1)
        ]
        await self.send(**self.board_message())

    def board_message(self, **changes: Any) -> dict[str, Any]:
        """Return the current board as a message."""
        return {
            "type": "leaderboard",
            "board": self.board,
            "epoch": self.epoch,
            "seq": self.seq,
            "at": int(time.time() * 1000),
            "leaderboard": self.rows,
        } | changes

    async def send(self, **message: Any) -> None:
        """Send one message to every viewer."""
        await self.send_text(json.dumps(message))

    async def send_text(self, text: str) -> None:
        """Send a text unchanged to every viewer."""
        for viewer in tuple(self.viewers):
            with suppress(ConnectionClosed):
                await viewer.send(text)

    async def close_viewers(self, code: int, reason: str = "") -> None:
        """Close every connection with a code."""
        for viewer in tuple(self.viewers):
            await viewer.close(code, reason)

    async def _serve_viewer(self, viewer: ServerConnection) -> None:
        self.viewers.add(viewer)
        try:
            if self.close_at_once is not None:
                await viewer.close(self.close_at_once)
                return
            if self.sends_snapshot:
                await viewer.send(json.dumps(self.board_message()))
            async for text in viewer:
                message = json.loads(text)
                self.received.append(message)
                if message["type"] == "sync" and self.answers_sync:
                    await viewer.send(json.dumps(self.board_message()))
        except ConnectionClosed:
            pass
        finally:
            self.viewers.discard(viewer)

    def _select_subprotocol(self, viewer: ServerConnection, offered: Any) -> str:
        return next(name for name in offered if name in self.forms)

    def _handle_handshake(self, viewer: ServerConnection, request: Request) -> Response | None:
        offered = ",".join(request.headers.get_all("Sec-WebSocket-Protocol"))
        board = parse_qs(urlsplit(request.path).query).get("board", [None])[0]
        names = [name.strip() for name in offered.split(",") if name.strip()]
        self.handshakes.append(Handshake(request.path, board, names))
        if self.reject_status is not None:
            return _answer(self.reject_status)
        return None

    def _serve_page(self, viewer: ServerConnection, request: Request) -> Response | None:
        path = urlsplit(request.path).path
        self.requests.append(request.path)
        if path == "/ws/scoreboard":
            return self._handle_handshake(viewer, request)
        if path == "/config.json":
            config = {"ws": self.ws_url} if self.config is None else self.config
            return _answer(HTTPStatus.OK, json.dumps(config).encode(), ".json")
        if path.startswith("/api/"):
            known: dict[str, Any] = {"/api/boards": {"boards": []}} | self.api_replies
            status = HTTPStatus.OK if path in known else self.api_status
            return _answer(status, json.dumps(known.get(path, {})).encode(), ".json")
        settings = load(
            {
                "REDIS_URL": "redis://none",
                "SCOREBOARD_WS_PUBLIC_URL": self.ws_url,
                "SCOREBOARD_FRAME_ORIGINS": self.frame_origins,
            }
        )
        policy = ("Content-Security-Policy", page_policy(settings, path))
        found = self._find_file(path)
        if found is None:
            return _answer(HTTPStatus.NOT_FOUND)
        return _answer(HTTPStatus.OK, *found, *([] if path == FOREIGN_PATH else [policy]))

    def _find_file(self, path: str) -> tuple[bytes, str] | None:
        """Return content and suffix of a file; None if there is none at the path."""
        merged = MergedPage(web_path(), "index.html")
        if path == "/":
            config = {"ws": self.ws_url} if self.config is None else self.config
            return merged.html(json.dumps(config).encode()), ".html"
        if path == FOREIGN_PATH:
            frame = FRAME.format(self.framed) if self.framed else ""
            return (FOREIGN + frame).encode(), ".html"
        if path == "/blank.html":
            return BLANK, ".html"
        if path in merged.assets:
            return merged.assets[path].content, Path(path).suffix
        if path in {EMBED, OVERLAY}:
            path = f"{path}.html"
        file = (web_path() / path.lstrip("/")).resolve()
        if file.is_relative_to(web_path().resolve()) and file.is_file():
            return file.read_bytes(), file.suffix
        return None


def _select_subprotocol(viewer: ServerConnection, offered: Any) -> str:
    return next(name for name in offered if name in {"scoreboard.v1", "scoreboard.v1.delta"})


def _port_of(server: Server) -> int:
    return next(iter(server.sockets)).getsockname()[1]


def _answer(
    status: HTTPStatus,
    body: bytes = b"",
    suffix: str = ".json",
    *more: tuple[str, str],
) -> Response:
    headers = Headers([("Content-Type", CONTENT_TYPES[suffix]), ("Cache-Control", "no-store")])
    headers["Content-Length"] = str(len(body))
    headers["Connection"] = "close"
    for name, value in more:
        headers[name] = value
    return Response(status.value, status.phrase, headers, body)
