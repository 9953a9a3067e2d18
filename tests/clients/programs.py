"""The client of each language as a program, and the servers that it meets."""

import functools
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol

from tests.support.repository import ROOT

GO = ROOT / "clients/go"
PYTHON = ROOT / "clients/python"
GO_VERSION = (1, 23)
WITHIN_S = 30.0
Document = dict[str, Any]


@functools.cache
def go_program() -> tuple[str, str]:
    """Return the path of the go command, or why it cannot build the client."""
    program = shutil.which("go")
    if program is None:
        return "", "Go is not installed"
    version = _run_go(program, "env", "GOVERSION").stdout.strip()
    if tuple(map(int, version.removeprefix("go").split(".")[:2])) < GO_VERSION:
        return "", f"the client needs Go 1.23, this is {version}"
    fetched = _run_go(program, "mod", "download")
    return program, fetched.stderr if fetched.returncode else ""


def go(*words: str, cwd: Path = GO) -> str:
    """Run the go command; without one that can build the client skip the test, in CI fail."""
    program, reason = go_program()
    if reason:
        assert os.environ.get("CI") != "true", f"NOT RUN: {reason}"
        pytest.skip(f"NOT RUN: {reason}")
    done = _run_go(program, *words, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _run_go(program: str, *words: str, cwd: Path = GO) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [program, *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod"},
    )


class Program:
    """A running client: what it has printed, and its standard input."""

    def __init__(self, command: Sequence[str], order: Document) -> None:
        self._process = subprocess.Popen(
            [*command, json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(PYTHON / "src")},
        )
        self.events: list[Document] = []
        self._arriving: queue.Queue[Document | None] = queue.Queue()
        self._errors = ""
        self._threads = [threading.Thread(target=one) for one in (self._read, self._read_errors)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        for thread in self._threads:
            thread.join(WITHIN_S)
        self._process.communicate()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._arriving.put(json.loads(line))
        self._arriving.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        self._errors = self._process.stderr.read()

    def next(self) -> Document:
        """Return the next event."""
        event = self._arriving.get(timeout=WITHIN_S)
        assert event is not None, f"the program has ended after {self.events}: {self._errors}"
        self.events.append(event)
        return event

    def until(self, event: str, **members: object) -> Document:
        """Return the next event of this kind that has these members."""
        while True:
            seen = self.next()
            if seen["event"] == event and members.items() <= seen.items():
                return seen

    def rest(self) -> list[Document]:
        """Return what the program prints until it ends."""
        started = len(self.events)
        while (event := self._arriving.get(timeout=WITHIN_S)) is not None:
            self.events.append(event)
        assert self._process.wait(WITHIN_S) == 0, self._errors
        return self.events[started:]

    def tell(self, **command: object) -> None:
        """Give the program a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def signal(self, number: int) -> None:
        """Send the program a signal."""
        self._process.send_signal(number)


Start = Callable[..., Program]
Script = Callable[["Viewer"], None]
Refusal = tuple[int, dict[str, str]]


class Viewer:
    """A connection of a client, as the scripted streamer sees it."""

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection

    def send(self, kind: str, **members: object) -> None:
        self.connection.send(json.dumps({"type": kind, **members}))

    def board(self, seq: int, epoch: int = 1, board: str = "main", **more: object) -> None:
        row = {"rank": 1, "userId": "ada", "score": seq}
        members = {"board": board, "epoch": epoch, "seq": seq, "at": 1, "leaderboard": [row]}
        self.send("leaderboard", **(members | more))

    def delta(
        self, base: int, seq: int, epoch: int = 1, board: str = "main", **more: object
    ) -> None:
        row = {"rank": 1, "userId": "ada", "score": seq}
        members = {"board": board, "epoch": epoch, "base": base, "seq": seq, "at": 1}
        self.send("delta", **(members | {"count": 1, "changes": [row]} | more))

    def receive(self) -> Document:
        return json.loads(self.connection.recv(timeout=WITHIN_S))

    def close(self, code: int) -> None:
        self.connection.close(code)

    def wait(self) -> None:
        """Wait until the client has gone."""
        with suppress(ConnectionClosed, TimeoutError):
            while True:
                self.connection.recv(timeout=WITHIN_S)


class Streamer:
    """A streamer that follows scripts: one for each connection, the last one for all later."""

    def __init__(self, scripts: Sequence[Script | Refusal], subprotocols: Sequence[str]) -> None:
        self.scripts = scripts
        self.requests: list[Request] = []
        self._server = serve(
            self._serve,
            "127.0.0.1",
            0,
            subprotocols=[Subprotocol(name) for name in subprotocols],
            process_request=self._accept,
        )
        self.url = f"ws://127.0.0.1:{self._server.socket.getsockname()[1]}/ws/scoreboard"

    def _script(self) -> Script | Refusal:
        return self.scripts[min(len(self.requests), len(self.scripts)) - 1]

    def _accept(self, connection: ServerConnection, request: Request) -> Response | None:
        self.requests.append(request)
        script = self._script()
        if not isinstance(script, tuple):
            return None
        status, headers = script
        kind = {"type": "/docs/problems/x", "title": "X", "status": status, "detail": ""}
        response = connection.respond(status, json.dumps(kind))
        for name, value in headers.items():
            response.headers[name] = value
        return response

    def _serve(self, connection: ServerConnection) -> None:
        script = self._script()
        assert not isinstance(script, tuple)
        with suppress(ConnectionClosed):
            script(Viewer(connection))

    def serve(self) -> None:
        self._server.serve_forever()

    def stop(self) -> None:
        self._server.shutdown()

    def tokens(self) -> list[str | None]:
        """Return the tokens of the handshakes."""
        return [one.headers.get("Authorization") for one in self.requests]


@contextmanager
def running(server: "Streamer | Gateway") -> Iterator[None]:
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield
    finally:
        server.stop()
        thread.join(WITHIN_S)


class Gateway(ThreadingHTTPServer):
    """An HTTP server that follows a plan: what to do with each request, the last for all later.

    `forward` sends it to the target, `lose` does so and gives no answer, `hang` waits, a number is
    a status, with `Retry-After` as in `429:1`, and JSON is the answer.
    """

    daemon_threads = True

    def __init__(self, target: str, plan: Sequence[str]) -> None:
        self.target = target
        self.plan = plan
        self.bodies: list[bytes] = []
        self.tokens: list[str | None] = []
        self.times: list[float] = []
        self.is_over = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def serve(self) -> None:
        self.serve_forever()

    def stop(self) -> None:
        self.is_over.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Gateway

    def do_POST(self) -> None:
        server = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        step = server.plan[min(len(server.bodies), len(server.plan) - 1)]
        server.bodies.append(body)
        server.tokens.append(self.headers.get("Authorization"))
        server.times.append(time.monotonic())
        if step == "hang":
            server.is_over.wait(WITHIN_S)
            self.close_connection = True
        elif step.startswith("{"):
            self._answer(200, step.encode())
        elif step in {"forward", "lose"}:
            names = ("Authorization", "Content-Type")
            headers = {name: self.headers[name] for name in names}
            answer = httpx.post(server.target + self.path, content=body, headers=headers)
            if step == "lose":
                self.close_connection = True  # counted, but the answer is lost
            else:
                self._answer(answer.status_code, answer.content)
        else:
            status, _, after = step.partition(":")
            self._answer(int(status), b"", {"Retry-After": after} if after else {})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Write nothing."""


def python_probe(kind: str) -> list[str]:
    return [sys.executable, str(ROOT / "tests/clients/probe.py"), kind]
