"""`scoreboard bench` on a running system: its board, what it removes, how it ends."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest
import redis

from tests.support.eventually import eventually
from tests.support.servers.system import System, run_command

pytestmark = pytest.mark.slow

BOARD = "bench-load"
SHORT = ("--duration", "1", "--warm-up", "0.2", "--rate", "200", "--json", "-")
TABLES = (
    "boards",
    "scores",
    "score_events",
    "users",
    "flush_state",
    "rejected_events",
    "dead_events",
)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Run a system for all tests that leave it as it was, as a load has to."""
    yield from run_system(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def own(tmp_path: Path) -> Iterator[System]:
    """Run a system for a test that changes it."""
    yield from run_system(tmp_path)


def run_system(folder: Path) -> Iterator[System]:
    """Run a system with a score on its board, which also serves a board for load tests."""
    with System(folder / "system", boards=f"main,{BOARD}", rate_limit="gateway") as made:
        assert bench(made, "clean").returncode == 0
        sent = httpx.post(
            f"{made.api}/api/scores/update",
            json={"userId": "alice", "actionId": "win:1"},
            headers=made.game_server(),
        )
        assert sent.status_code == 200
        eventually(lambda: any("alice" in row for row in rows(made)["users"]))
        yield made


def bench(system: System, *arguments: str) -> subprocess.CompletedProcess[str]:
    addresses = () if arguments[0] in {"clean", "lua"} else ("--api", system.api, "--ws", system.ws)
    return system.run("bench", *arguments, *addresses)


def rows(system: System) -> dict[str, list[str]]:
    """Return everything in PostgreSQL but the audit log, each row as text."""
    with psycopg.connect(system.postgres.url) as connection:
        return {
            table: sorted(
                row[0] for row in connection.execute(f"SELECT {table}::TEXT FROM {table}")
            )
            for table in TABLES
        }


def keys(system: System) -> set[str]:
    """Return the names of all keys in Redis."""
    with redis.Redis.from_url(system.valkey.url, decode_responses=True) as client:
        return set(client.scan_iter())


def outside(system: System) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return both stores without the fixed rows and keys of the board for load tests."""
    tables = {
        name: [row for row in held if BOARD not in row] for name, held in rows(system).items()
    }
    with redis.Redis.from_url(system.valkey.url, decode_responses=True) as client:
        # The flusher writes to streams and meta hashes of its own accord.
        contents = {
            name: client.zrange(name, 0, -1, withscores=True)
            if client.type(name) == "zset"
            else None
            for name in keys(system)
            if BOARD not in name
        }
    return tables, contents


def start(system: System, *arguments: str) -> "subprocess.Popen[str]":
    """Start a load that lasts until it is stopped."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "cli", "bench", *arguments, "--duration", "600"),
            *("--rate", "200", "--json", "-", "--data-dir", str(system.folder)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def actions_of_load(system: System) -> int:
    with psycopg.connect(system.postgres.url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM score_events WHERE board = %s", (BOARD,)
        ).fetchone()
    return row[0] if row else 0


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("load", ["http", "read", "ws", "flush", "lua"])
def test_a_load_measures_and_leaves_nothing(loaded: System, load: str) -> None:
    more = {"ws": ("--viewers", "20", "--joins", "200"), "flush": ("--burst", "500")}
    before = outside(loaded)

    found = result_of(bench(loaded, load, *SHORT, *more.get(load, ())))

    assert found["loop"] == "open"
    assert found["latency"]["count"] > 100
    # On a busy machine too many viewers may connect at once; the streamer refuses some.
    assert set(found["outcomes"]) <= {"applied", "ok", "handshake 503"}
    assert found["cpu_us"]["redis"] > 0
    assert found["environment"]["redis"]["appendfsync"] == "always"
    assert outside(loaded) == before
    of_load = {name: [r for r in held if BOARD in r] for name, held in rows(loaded).items()}
    assert {name for name, held in of_load.items() if held} <= {"boards", "flush_state"}
    expiring = f"sb:{{{BOARD}:0}}:viewers"  # within seconds
    left = {name for name in keys(loaded) if BOARD in name} - {expiring}
    assert left <= {f"sb:{{{BOARD}:0}}:{kind}" for kind in ("meta", "events")}


def test_the_ledger_is_append_only_again_after_a_run(loaded: System) -> None:
    result_of(bench(loaded, "http", *SHORT))
    with psycopg.connect(loaded.postgres.url) as connection:
        states = connection.execute(
            "SELECT DISTINCT tgenabled FROM pg_trigger WHERE tgname = 'score_events_no_change'"
        ).fetchall()
    assert states == [("O",)]


def test_a_criterion_decides_the_exit_code(loaded: System) -> None:
    done = bench(loaded, "http", *SHORT, "--fail-if", "p50<1s", "--fail-if", "errors>0%")
    assert done.returncode == 1
    assert "http: p50<1s" in done.stderr
    assert "errors" not in done.stderr
    assert json.loads(done.stdout)["outcomes"] == {"applied": 200}


@pytest.mark.parametrize(
    "arguments", [("http", "--rate", "nan"), ("read", "--mix", "nan"), ("ws", "--joins", "nan")]
)
def test_a_number_that_is_none_is_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = run_command("bench", *arguments, "--data-dir", str(tmp_path))
    assert done.returncode == 2
    assert "'nan' is not a number" in done.stderr


def test_a_result_that_cannot_be_written_is_refused_before_the_run(tmp_path: Path) -> None:
    done = run_command("bench", "lua", "--json", str(tmp_path / "none" / "x"))
    assert done.returncode == 5
    assert "cannot be written" in done.stderr
    assert "starting" not in done.stderr


def test_a_limit_on_open_files_is_told_before_the_run(tmp_path: Path) -> None:
    command = f"ulimit -n 200; exec {sys.executable} -m cli bench http --connections 1000"
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 5, done.stderr
    assert "the limit is 200" in done.stderr


def test_an_output_that_fails_hides_neither_the_result_nor_the_criteria(loaded: System) -> None:
    done = bench(loaded, "http", *SHORT[:-2], "--json", "/dev/full")
    assert done.returncode == 74
    assert "/dev/full: No space left" in done.stderr
    assert "applied 200" in done.stdout
    process = start(loaded, "http", "--warm-up", "0", "--api", loaded.api, "--fail-if", "p50>0ms")
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        process.stdout.close()
        eventually(lambda: actions_of_load(loaded) > 100, within_s=60)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert "Failed: http: p50>0ms" in process.stderr.read()
    finally:
        process.kill()
        process.stderr.close()


def test_an_unreadable_criterion_fails_before_anything_starts(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cli", "bench", "all", "--fail-if", "p95>1ms"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "'p95' is not a figure" in done.stderr
    assert "starting" not in done.stderr


def test_lua_refuses_a_board() -> None:
    done = run_command("bench", "lua", "--board", "bench-load")
    assert done.returncode == 2
    assert "leave --board out" in done.stderr


@pytest.mark.parametrize(
    ("board", "reason"),
    [("main", "never on main"), ("bench-other", "do not serve board bench-other")],
)
def test_only_served_boards_for_load_tests_are_loaded(
    loaded: System, board: str, reason: str
) -> None:
    before = outside(loaded)
    done = bench(loaded, "http", *SHORT, "--board", board)
    assert done.returncode == 5
    assert reason in done.stderr
    assert outside(loaded) == before


def test_a_board_without_the_mark_is_never_touched(own: System) -> None:
    """A board of players that was called so when the prefix had no meaning."""
    with psycopg.connect(own.postgres.url) as connection:
        connection.execute("INSERT INTO boards VALUES (%s, 1, 43200, 64, true)", (BOARD,))
    before = rows(own)
    done = bench(own, "http", *SHORT)
    assert done.returncode == 5
    assert "was not created as one for load tests" in done.stderr
    assert bench(own, "clean").returncode == 0
    assert rows(own) == before


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_reports_what_it_measured_and_leaves_nothing(
    loaded: System, stop: signal.Signals
) -> None:
    before = outside(loaded)
    process = start(loaded, "http", "--warm-up", "0", "--api", loaded.api)
    try:
        eventually(lambda: actions_of_load(loaded) > 100, within_s=60)
        process.send_signal(stop)
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    found = json.loads(out)
    assert found["outcomes"]["applied"] > 100
    assert "the run was stopped before its end" in found["marks"]
    assert actions_of_load(loaded) == 0
    assert outside(loaded) == before


def test_a_second_run_on_the_board_is_refused(loaded: System) -> None:
    process = start(loaded, "http", "--api", loaded.api)
    try:
        eventually(lambda: actions_of_load(loaded) > 10, within_s=60)
        done = bench(loaded, "http", *SHORT)
        assert done.returncode == 5
        assert "Another load test runs" in done.stderr
        assert "in use by a running load test" in bench(loaded, "clean").stdout
        assert actions_of_load(loaded) > 10
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def test_what_a_killed_run_left_is_cleaned(loaded: System) -> None:
    before = outside(loaded)
    process = start(loaded, "http", "--api", loaded.api)
    try:
        eventually(lambda: actions_of_load(loaded) > 100, within_s=60)
    finally:
        process.kill()
        process.communicate()

    done = eventually_unlocked(loaded)
    assert "has data of a run that was killed" in done.stderr
    cleaned = bench(loaded, "clean")
    assert f"{BOARD}: emptied" in cleaned.stdout, cleaned.stderr
    assert actions_of_load(loaded) == 0
    assert outside(loaded) == before
    result_of(bench(loaded, "http", *SHORT))


def eventually_unlocked(system: System) -> subprocess.CompletedProcess[str]:
    """Return a refused run; PostgreSQL notices the end of a killed client after a moment."""
    until_s = time.monotonic() + 30
    while True:
        done = bench(system, "http", *SHORT)
        assert done.returncode == 5, done.stdout
        if "Another load test" not in done.stderr or time.monotonic() > until_s:
            return done


def test_the_keys_of_a_killed_load_of_scripts_are_cleaned(loaded: System) -> None:
    before = outside(loaded)
    process = start(loaded, "lua", "--members", "1000")

    def script_keys() -> set[str]:
        return {name for name in keys(loaded) if "{bench-" in name and BOARD not in name}

    try:
        eventually(lambda: any(":events" in name for name in script_keys()), within_s=60)
    finally:
        process.kill()
        process.communicate()
    eventually(lambda: "removed from Redis" in bench(loaded, "clean").stdout, within_s=30)
    assert script_keys() == set()
    assert outside(loaded) == before


def test_a_board_that_is_no_longer_served_is_removed(own: System) -> None:
    result_of(bench(own, "http", *SHORT))
    for service in own.services.values():
        service.stop()
    state = own.folder / "running.json"
    state.write_text(state.read_text().replace(f"main,{BOARD}", "main"))
    done = bench(own, "clean")
    assert f"{BOARD}: removed" in done.stdout, done.stderr
    assert not [row for held in rows(own).values() for row in held if BOARD in row]
    assert not [name for name in keys(own) if BOARD in name]


def test_a_login_that_may_not_delete_from_the_ledger_is_refused(loaded: System) -> None:
    with psycopg.connect(loaded.postgres.url, autocommit=True) as connection:
        connection.execute("CREATE ROLE clerk LOGIN PASSWORD 'clerk'")
        connection.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO clerk")
    before = rows(loaded)
    parts = urlsplit(loaded.postgres.url)
    done = run_command(
        *("bench", "http", *SHORT, "--api", loaded.api),
        REDIS_URL=loaded.valkey.url,
        DATABASE_URL=parts._replace(netloc=f"clerk:clerk@127.0.0.1:{parts.port}").geturl(),
        SCOREBOARD_BOARDS=f"main,{BOARD}",
    )
    assert done.returncode == 5
    assert "needs the login that owns the tables" in done.stderr
    assert rows(loaded) == before


def test_tokens_come_from_a_file_and_are_not_printed(loaded: System, tmp_path: Path) -> None:
    names = [f"{BOARD}.{number:06d}" for number in range(5)]
    tokens = tmp_path / "tokens"
    tokens.write_text("".join(f"{loaded.token(name)}\n" for name in names))
    done = run_command(
        *("bench", "http", *SHORT, "--api", loaded.api, "--token-file", str(tokens)),
        REDIS_URL=loaded.valkey.url,
        DATABASE_URL=loaded.postgres.url,
        SCOREBOARD_BOARDS=f"main,{BOARD}",
    )
    found = result_of(done)
    assert found["outcomes"] == {"applied": 200}
    assert found["details"]["users"] == 5
    assert not any(token in done.stdout + done.stderr for token in tokens.read_text().split())
    # As `scoreboard token --users` writes them.
    tokens.write_text("".join(f"{name} {loaded.token(name)}\n" for name in names))
    found = result_of(bench(loaded, "http", *SHORT, "--token-file", str(tokens)))
    assert found["outcomes"] == {"applied": 200}
    assert found["details"]["users"] == 5
    tokens.write_text("not-a-token\n")
    done = bench(loaded, "http", *SHORT, "--token-file", str(tokens))
    assert done.returncode == 5
    assert "Line 1 of" in done.stderr
    assert "not-a-token" not in done.stderr


def test_the_documented_login_of_redis_is_enough(own: System, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/load-test.md").read_text()
    rule = page[page.index("ACL SETUSER") :].partition("```")[0].replace("\\\n", " ")
    with redis.Redis.from_url(own.valkey.url) as client:
        client.execute_command(*rule.replace("PASSWORD", "of-the-test").split())
    address = urlsplit(own.valkey.url)
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{own.token(f'{BOARD}.000001')}\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_command(
            *("bench", *arguments),
            REDIS_URL=f"redis://bench:of-the-test@{address.hostname}:{address.port}/0",
            DATABASE_URL=own.postgres.url,
            SCOREBOARD_BOARDS=f"main,{BOARD}",
        )

    served = ("--api", own.api, "--ws", own.ws, "--token-file", str(tokens))
    for load in ("http", "read", "ws", "flush"):
        result_of(run(load, *SHORT, *served))
    result_of(run("lua", *SHORT))
    cleaned = run("clean")
    assert f"{BOARD}: emptied" in cleaned.stdout, cleaned.stderr


def test_the_result_is_printed_also_if_the_board_cannot_be_emptied(own: System) -> None:
    """Without a flusher the stream is not drained; what is left is cleaned when it runs again."""
    result_of(bench(own, "http", *SHORT))
    own.services["flusher"].stop()
    done = bench(own, "http", *SHORT)
    assert done.returncode == 75
    assert "start the flusher" in done.stderr
    assert json.loads(done.stdout)["outcomes"] == {"applied": 200}
    own.services["flusher"].start()
    own.wait_until_ready("flusher")
    assert f"{BOARD}: emptied" in bench(own, "clean").stdout
    assert actions_of_load(own) == 0
