"""The scripts of loadtest/ run with their tools, and the ledger has what they call acknowledged."""

import json
import os
import re
import shlex
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
import redis

from tests.support import tools
from tests.support.clients import npm
from tests.support.clients.forked import programs
from tests.support.eventually import eventually
from tests.support.repository import ROOT
from tests.support.servers.system import System

README = (ROOT / "loadtest/README.md").read_text()
RUNNER = ROOT / "tests/support/clients/k6_in_node.mjs"
USERS = 40
CONNECTIONS = 4

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("shared") / "system"
    with System(folder, updates_per_minute=1_000_000) as made:
        yield made


@pytest.fixture(scope="module")
def made_tokens(system: System) -> str:
    """Make tokens as README.md says."""
    done = system.run("token", "--sub", "bench-load.u", "--users", str(USERS))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def tokens(made_tokens: str, tmp_path: Path) -> Path:
    """Return a file of tokens."""
    path = tmp_path / "tokens.txt"
    path.write_text(made_tokens)
    return path


@pytest.fixture
def before(system: System) -> int:
    """Return the number of actions that other tests have left on the shared system."""
    return applied(system)


def run(command: str, system: System, tokens: Path, code: int = 0, **variables: str) -> str:
    """Run a tool in the root folder; return its output."""
    done = subprocess.run(
        shlex.split(command),
        cwd=ROOT,
        env=os.environ | {"LOAD_TOKENS": str(tokens), "LOAD_URL": system.api} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def outcomes(output: str) -> dict[str, int]:
    """Return the numbers of the line that each script prints at its end."""
    (line,) = re.findall(r"^(?:acknowledged|answered) .*$", output, re.MULTILINE)
    return {name: int(number) for name, number in re.findall(r"(\w+) (\d+)", line)}


def committed(system: System) -> int:
    with psycopg.connect(system.postgres.url) as ledger:
        found = ledger.execute("SELECT count(*) FROM score_events").fetchone()
        assert found is not None
        return found[0]


def applied(system: System) -> int:
    with redis.Redis.from_url(system.valkey.url) as client:
        return int(client.hget("sb:{main:0}:meta", "seq"))  # pyright: ignore[reportArgumentType]


def wait_until_committed(
    system: System, least: int, most: int | None = None, *, before: int = 0
) -> None:
    """Wait until the ledger has all actions that Redis counted, and check their number."""
    found = applied(system)
    assert least <= found - before <= (least if most is None else most)
    eventually(lambda: committed(system) == found)
    assert system.run("verify").returncode == 0


def command_of(label: str) -> str:
    """Return a command of the table in README.md."""
    (found,) = re.findall(rf"^\| {label} \| .*? \| `(.*?)` \|$", README, re.MULTILINE)
    return found


def wrk(label: str, system: System) -> str:
    """Return a command of README.md with few connections and a short time."""
    tools.program("wrk", "wrk")
    command = command_of(f"wrk, {label}").replace("http://127.0.0.1:8000", system.api)
    return command.replace("-c 64", f"-c {CONNECTIONS}").replace("-d 30s", "-d 2s")


def test_wrk_sends_updates_that_the_ledger_has(system: System, tokens: Path, before: int) -> None:
    output = run(wrk("updates", system), system, tokens)

    found = outcomes(output)
    assert found["acknowledged"] > 10
    assert [found[name] for name in ("replayed", "limited", "failed")] == [0, 0, 0]
    # wrk ends while each connection may have a request that was not answered.
    most = found["acknowledged"] + CONNECTIONS
    wait_until_committed(system, found["acknowledged"], most, before=before)


def test_what_the_limit_refuses_is_counted_apart(tmp_path: Path) -> None:
    with System(tmp_path / "limited", updates_per_minute=1) as limited:
        tokens = tmp_path / "tokens.txt"
        tokens.write_text(limited.run("token", "--sub", "load", "--users", str(USERS)).stdout)
        variables = {"LOAD_URL": limited.api, "LOAD_TOKENS": str(tokens)}

        of_wrk = outcomes(run(wrk("updates", limited), limited, tokens))
        of_locust = outcomes(run(locust(), limited, tokens, LOAD_RATE="5"))
        of_k6 = counters_of(in_node("update.js", 1, variables))

        assert of_wrk["acknowledged"] == USERS
        for found in (of_wrk, of_locust, of_k6):
            assert found["limited"] > 0
            assert found["replayed"] == found["failed"] == 0
        assert of_locust["acknowledged"] == of_k6["acknowledged"] == 0
        wait_until_committed(limited, USERS)


def test_a_board_of_bench_is_emptied_after_other_tools(tmp_path: Path) -> None:
    boards = "main,bench-load"
    with System(tmp_path / "system", boards=boards, updates_per_minute=1_000_000) as made:
        bench = "bench http --rate 20 --warm-up 0 --duration 1 --users 5"
        done = made.run(*bench.split())
        assert done.returncode == 0, done.stderr
        tokens = tmp_path / "tokens.txt"
        tokens.write_text(made.run("token", "--sub", "bench-load.u", "--users", "10").stdout)

        found = outcomes(run(wrk("updates", made), made, tokens, LOAD_BOARD="bench-load"))

        assert found["acknowledged"] > 10
        eventually(lambda: committed(made) >= found["acknowledged"])
        assert made.run("bench", "clean").returncode == 0
        assert committed(made) == 0
        with psycopg.connect(made.postgres.url) as ledger:
            assert ledger.execute("SELECT count(*) FROM users").fetchone() == (0,)
        with redis.Redis.from_url(made.valkey.url) as client:
            assert client.zcard("sb:{bench-load:0}:board") == 0
        again = outcomes(run(wrk("updates", made), made, tokens, LOAD_BOARD="bench-load"))
        assert again["acknowledged"] > 10
        assert again["failed"] == 0


def test_wrk_counts_failures(system: System, tokens: Path, before: int) -> None:
    tokens.write_text("load-1 invalid\n")

    output = run(wrk("updates", system), system, tokens)

    found = outcomes(output)
    assert found["failed"] > 0
    assert found["acknowledged"] == 0
    assert "one of the failures: 401" in output
    assert applied(system) == before


def test_wrk_reads_the_top_and_ranks(system: System, tokens: Path) -> None:
    run(wrk("updates", system), system, tokens)

    top = outcomes(run(wrk("reads", system), system, tokens))
    ranks = outcomes(run(wrk("reads", system), system, tokens, LOAD_READ="users"))

    for found in (top, ranks):
        assert found["answered"] > 10
        assert found["failed"] == found["unknown"] == 0


def test_locust_sends_updates_that_the_ledger_has(
    system: System, tokens: Path, before: int
) -> None:
    output = run(locust(), system, tokens, LOAD_RATE="5")

    found = outcomes(output)
    assert found["acknowledged"] > 10
    assert [found[name] for name in ("replayed", "limited", "failed")] == [0, 0, 0]
    wait_until_committed(system, found["acknowledged"], before=before)


def test_locust_counts_refusals_apart_from_failures(system: System, tokens: Path) -> None:
    tokens.write_text("load-1 invalid\n")

    found = outcomes(run(locust(), system, tokens, code=1, LOAD_RATE="5"))

    assert found["failed"] > 0
    assert found["acknowledged"] == found["limited"] == 0


def locust() -> str:
    """Return the command of README.md with few users and a short time."""
    if not (ROOT / ".venv-loadtest/.done").exists():
        missing = "locust is missing (make loadtest)"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(f"NOT RUN: {missing}")
    command = command_of("locust")
    return command.replace("-u 1000 -r 100 -t 1m", "-u 10 -r 10 -t 3s --only-summary")


def in_node(program: str, iterations: int, variables: dict[str, str]) -> "subprocess.Popen[str]":
    """Start a program for k6 in Node, without k6, which is not installed."""
    return subprocess.Popen(
        [str(npm.NODE / "bin/node"), RUNNER, f"loadtest/k6/{program}", str(iterations)],
        cwd=ROOT,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def counters_of(process: "subprocess.Popen[str]") -> dict[str, int]:
    try:
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, output
    return json.loads(output)["counters"]


def test_the_updates_of_k6_are_counted_and_in_the_ledger(
    system: System, tokens: Path, before: int
) -> None:
    variables = {"LOAD_URL": system.api, "LOAD_TOKENS": str(tokens)}

    found = counters_of(in_node("update.js", 2 * USERS, variables))
    tokens.write_text("load-1 invalid\n")
    refused = counters_of(in_node("update.js", 1, variables))

    none = {"replayed": 0, "limited": 0}
    assert found == none | {"acknowledged": 2 * USERS, "failed": 0, "checks_failed": 0}
    assert refused == none | {"acknowledged": 0, "failed": 1, "checks_failed": 1}
    wait_until_committed(system, 2 * USERS, before=before)


def test_the_viewers_of_k6_receive_boards(system: System, tokens: Path) -> None:
    variables = {"LOAD_WS_URL": system.ws, "LOAD_DURATION": "8"}
    viewers = in_node("viewers.js", 3, variables)
    try:
        eventually(lambda: viewers_of(system) == 3)
        run(wrk("updates", system), system, tokens)
    finally:
        found = counters_of(viewers)

    assert found["boards"] > 2 * 3
    assert found["board_age"] >= 0
    for name in ("boards_backwards", "connections_lost", "checks_failed"):
        assert found[name] == 0


def viewers_of(system: System) -> int:
    port = system.variables["streamer"]["SCOREBOARD_WS_METRICS_PORT"]
    page = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
    found = re.search(r'^scoreboard_ws_connections\{state="open"\} ([\d.]+)$', page, re.MULTILINE)
    return int(float(found[1])) if found else 0


def test_the_file_of_tokens_is_for_its_owner_alone(system: System, tmp_path: Path) -> None:
    (line,) = re.findall(r"^\(umask 077; scoreboard token .*\)$", README, re.MULTILINE)
    (tmp_path / ".data").symlink_to(system.folder)
    path = f"{programs('cli')}:{os.environ['PATH']}"

    subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=os.environ | {"PATH": path}, timeout=60, check=True
    )

    made = tmp_path / "tokens.txt"
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    pairs = [one.split(" ") for one in made.read_text().splitlines()]
    assert [user for user, _ in pairs] == [f"bench-load.u-{number}" for number in range(1, 1001)]
    assert len({token for _, token in pairs}) == 1000
