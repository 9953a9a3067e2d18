"""A small server on loopback that speaks the two parts of HTTP which kong-sync meets.

It is not Kong: it records what is posted to ``/config`` and answers as it is told, or, left alone,
with 201 for a configuration it does not hold and 304 for the one it does. ``/jwks.json`` is the
issuer.
"""

import json
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FakeAdmin:
    """What the server is told to answer, and what it was sent."""

    url: str = ""
    jwks: bytes = b""
    jwks_status: int = 200
    asked: int = 0
    answers: deque[int] = field(default_factory=deque)
    posted: list[tuple[str, str]] = field(default_factory=list)
    held: str = ""

    @property
    def jwks_url(self) -> str:
        """Where the key set is."""
        return f"{self.url}/jwks.json"


@contextmanager
def fake_admin() -> Iterator[FakeAdmin]:
    """Run the server inside the block."""
    state = FakeAdmin()

    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def log_message(self, *args: Any) -> None:
            pass

        def reply(self, status: int, body: bytes = b"") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if status == 302:
                self.send_header("Location", f"{state.url}/elsewhere")
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            is_jwks = self.path == "/jwks.json"
            state.asked += is_jwks
            self.reply(state.jwks_status if is_jwks else 200, state.jwks)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            text = json.loads(body)["config"]
            state.posted.append((self.path, text))
            if state.answers:
                status = state.answers.popleft()
            else:
                status = 304 if text == state.held else 201
            if status == 201:
                state.held = text
            self.reply(status, b"" if status == 304 else b'{"message":"what is wrong"}')

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
