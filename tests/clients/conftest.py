"""Each client as a program, the scripted servers, and a running system."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.clients.programs import (
    Gateway,
    Program,
    Refusal,
    Script,
    Start,
    Streamer,
    go,
    python_probe,
    running,
)
from tests.support.servers.system import System

FORMS = ("scoreboard.v1.delta", "scoreboard.v1")


@pytest.fixture(scope="session")
def go_probe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of the Go client as a program."""
    path = tmp_path_factory.mktemp("go") / "probe"
    go("build", "-o", str(path), "./internal/probe")
    return str(path)


@pytest.fixture(params=["blocking", "asyncio", "go"])
def client(request: pytest.FixtureRequest) -> list[str]:
    """Return the command line of one client."""
    if request.param == "go":
        return [request.getfixturevalue("go_probe")]
    return python_probe(request.param)


@pytest.fixture
def start(client: list[str]) -> Iterator[Start]:
    """Return a function that starts the client with an order; the test's end ends it."""
    with ExitStack() as stack:

        def begin(**order: object) -> Program:
            return stack.enter_context(Program(client, order))

        yield begin


@pytest.fixture
def streamer() -> Iterator[Callable[..., Streamer]]:
    """Return a function that starts a streamer with a script for each connection."""
    with ExitStack() as stack:

        def begin(*scripts: Script | Refusal, subprotocols: Sequence[str] = FORMS) -> Streamer:
            server = Streamer(scripts, subprotocols)
            stack.enter_context(running(server))
            return server

        yield begin


@pytest.fixture
def gateway() -> Iterator[Callable[..., Gateway]]:
    """Return a function that starts a gateway with a plan."""
    with ExitStack() as stack:

        def begin(target: str, *plan: str) -> Gateway:
            server = Gateway(target, plan)
            stack.enter_context(running(server))
            return server

        yield begin


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Return a running system for all tests of this folder."""
    with System(tmp_path_factory.mktemp("clients") / "system", updates_per_minute=1000) as made:
        assert made.run("board", "create", "league", "--season", "weekly").returncode == 0
        yield made


@pytest.fixture
def user(request: pytest.FixtureRequest) -> str:
    return "".join(letter for letter in request.node.name if letter.isalnum())


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "key.pem"
