"""A command uses the addresses of one system: from the environment, or from a state file.

Incident: `REDIS_URL=… scoreboard repair --yes` took the database from the state file of another
system, and replaced the board in that Redis.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import psycopg
import pytest
import redis

from cli.target import RunningSystem, write_state_file
from tests.support.clients.commands import Run
from tests.support.data.ledger import Counted, write_history

pytestmark = pytest.mark.slow

HERE = ".data"
VERBS = {
    "board create": ("weekly",),
    "board list": (),
    "board top": (),
    "user show": ("alice",),
    "user set": ("alice", "--name", "Alice"),
    "user import": ("users.csv",),
    "action list": (),
    "action set": ("win", "5"),
    "action disable": ("win",),
    "db migrate": (),
    "db status": (),
    "reseed": ("--force", "--yes"),
    "verify": (),
    "repair": ("--yes",),
    "config check": (),
}
CHANGES = {
    *("board create", "user set", "user import", "action set", "action disable", "db migrate"),
    *("reseed", "repair"),
}
NEEDS_REDIS_ALONE = {"board top"}
NEEDS_DATABASE_ALONE = {"db migrate", "db status"}


def command_line(verb: str) -> tuple[str, ...]:
    return (*verb.split(), *VERBS[verb])


@pytest.fixture
def system(command: Run, redis_url: str, database_url: str, tmp_path: Path) -> RunningSystem:
    """Return a system with a user on its board, and write its state file to `.data`."""
    write_history(database_url, [Counted("alice", "a", 5, time.time())])
    assert command("reseed").code == 0
    state = RunningSystem(
        "http://127.0.0.1:1", "ws://127.0.0.1:1/ws/scoreboard", redis_url, database_url, {}
    )
    (tmp_path / HERE).mkdir()
    write_state_file(tmp_path / HERE, state)
    (tmp_path / "users.csv").write_text("userId,name\nbob,Bob\n")
    return state


@pytest.fixture
def other_redis(redis_url: str) -> str:
    """Return the URL of another database of the server, which has no board."""
    return redis_url.removesuffix("/0") + "/1"


def snapshot(state: RunningSystem, other_redis: str) -> tuple[object, ...]:
    """Return everything that a command could have changed."""
    with psycopg.connect(state.database) as connection:
        rows = connection.execute("SELECT count(*), max(id) FROM audit_log").fetchall()
        users = connection.execute("SELECT external_id, name FROM users ORDER BY 1").fetchall()
    found = []
    for url in (state.redis, other_redis):
        with redis.Redis.from_url(url) as client:
            keys = sorted(client.scan_iter())
            found.append([(key, client.dump(key)) for key in keys])
    return (rows, users, *found)


@pytest.mark.parametrize("verb", sorted(set(VERBS) - NEEDS_REDIS_ALONE))
def test_a_redis_url_alone_is_not_completed_from_the_state_file(
    verb: str,
    command: Run,
    system: RunningSystem,
    other_redis: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REDIS_URL", other_redis)
    monkeypatch.delenv("DATABASE_URL")
    before = snapshot(system, other_redis)

    done = command(*command_line(verb))

    assert done.code == 5, done
    assert "REDIS_URL is set and DATABASE_URL is not" in done.err
    assert len(done.err.splitlines()) == 1
    assert snapshot(system, other_redis) == before


@pytest.mark.parametrize("verb", sorted(set(VERBS) - NEEDS_DATABASE_ALONE))
def test_a_database_url_alone_is_not_completed_from_the_state_file(
    verb: str,
    command: Run,
    system: RunningSystem,
    other_redis: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/other")
    monkeypatch.delenv("REDIS_URL")
    before = snapshot(system, other_redis)

    done = command(*command_line(verb))

    assert done.code == 5, done
    assert "DATABASE_URL is set and REDIS_URL is not" in done.err
    assert snapshot(system, other_redis) == before


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_a_named_folder_and_an_environment_that_disagree_are_refused(
    verb: str,
    command: Run,
    system: RunningSystem,
    other_redis: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REDIS_URL", other_redis)
    before = snapshot(system, other_redis)

    done = command(*command_line(verb), "--data-dir", HERE)

    assert done.code == 5, done
    assert "name another" in done.err
    assert snapshot(system, other_redis) == before


def test_commands_need_only_the_addresses_they_use(
    command: Run, system: RunningSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATABASE_URL")
    assert command("board", "top").out == "1\talice\t5\n"
    monkeypatch.delenv("REDIS_URL")
    monkeypatch.setenv("DATABASE_URL", system.database)
    assert command("db", "status").code == 0


@pytest.mark.one_server
@pytest.mark.parametrize("verb", sorted(CHANGES))
def test_changing_commands_print_the_system_first(
    verb: str, command: Run, system: RunningSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = [
        f"redis://{system.redis.partition('@')[2]}",
        f"postgresql://scoreboard@{system.database.partition('@')[2]}",
    ]

    given = command(*command_line(verb)).err.splitlines()[0]
    monkeypatch.delenv("REDIS_URL")
    monkeypatch.delenv("DATABASE_URL")
    found = command(*command_line(verb)).err.splitlines()[0]

    for line, source in ((given, "the environment"), (found, f"runs on {HERE}")):
        assert line.startswith("Acting on ")
        assert line.endswith(source)
        assert all(address in line for address in shown)


def test_the_settings_come_from_the_same_source_as_the_addresses(
    command: Run, system: RunningSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import msgspec

    settings = {"SCOREBOARD_BOARDS": "weekly,main", "SCOREBOARD_AUDIENCE": "games"}
    write_state_file(tmp_path / HERE, msgspec.structs.replace(system, settings=settings))
    assert command("board", "top").out == "1\talice\t5\n"  # the environment's board is main
    monkeypatch.delenv("REDIS_URL")
    monkeypatch.delenv("DATABASE_URL")
    monkeypatch.setenv("SCOREBOARD_BOARDS", "daily")

    assert "Board weekly does not exist" in command("board", "top").err
    assert command("board", "top", "--board", "main").code == 0


@pytest.mark.parametrize("words", [("board", "watch"), ("simulate", "--seconds", "1")])
def test_simulate_and_watch_reject_another_system(
    words: Sequence[str],
    command: Run,
    system: RunningSystem,
    other_redis: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REDIS_URL", other_redis)

    done = command(*words)

    assert done.code == 5
    assert "name another system" in done.err


def test_a_state_file_that_others_can_write_is_not_used(
    command: Run, system: RunningSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REDIS_URL")
    monkeypatch.delenv("DATABASE_URL")
    file = tmp_path / HERE / "running.json"
    assert command("board", "top").code == 0

    file.chmod(0o666)
    assert command("board", "top").code == 5
    file.chmod(0o600)
    if os.geteuid() == 0:
        # `/tmp/.data` could be another user's: root uses such a folder only if it is named.
        os.chown(file, 65534, 65534)
        assert "another user" in command("board", "top").err
        assert command("board", "top", "--data-dir", HERE).code == 0


@pytest.mark.parametrize("given", ["REDIS_URL", "DATABASE_URL"])
def test_up_needs_both_addresses_or_none(
    given: str, command: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # With the Redis of a running system and its own database, `up` would empty the stream.
    (other,) = {"REDIS_URL", "DATABASE_URL"} - {given}
    monkeypatch.delenv(other)

    done = command("up", "--data-dir", str(tmp_path / "up"))

    assert done.code == 5
    assert f"{given} is set and {other} is not" in done.err


def test_an_unknown_board_and_an_unloaded_board_have_different_exit_codes(
    command: Run, system: RunningSystem, redis_url: str
) -> None:
    assert command("board", "top", "--board", "nosuch").code == 3
    assert command("user", "show", "alice", "--board", "nosuch").code == 3
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    assert command("board", "top").code == 69
    assert command("user", "show", "alice").code == 69
