"""The flusher as a service: start checks, waiting, health and metrics."""

import asyncio
import json
import subprocess
import sys
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import pytest
import redis

from cli.embedded.ports import find_free_port
from flusher.session import LEASE_LOCK
from scoreboard.ledger.pool import connect
from scoreboard.model import Action, Partition
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.keys import ACTIVE, PartitionKeys
from tests.support.eventually import eventually, eventually_async
from tests.support.servers.flushers import (
    FlusherProcess,
    act,
    check_invariants,
    flushing,
    is_drained,
    make_board,
    query,
)
from tests.support.servers.stores import OwnPostgres, OwnValkey

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(redis_url: str, database_url: str) -> Settings:
    return Settings(
        redis_url=Secret(redis_url),
        database_url=Secret(database_url),
        flusher_metrics_port=find_free_port(),
    )


def get(settings: Settings, path: str, method: str = "GET") -> tuple[int, str]:
    url = f"http://127.0.0.1:{settings.flusher_metrics_port}{path}"
    request = urllib.request.Request(url, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def ask(settings: Settings, path: str, method: str = "GET") -> tuple[int, str]:
    return await asyncio.to_thread(get, settings, path, method)


def metric(text: str, name: str) -> float:
    lines = [one for one in text.splitlines() if one.startswith(f"scoreboard_{name}")]
    assert len(lines) == 1, f"{name} has no value yet"
    return float(lines[0].split()[-1])


async def test_the_probe_reports_health(settings: Settings) -> None:
    async with flushing(settings):
        await eventually_async(lambda: asyncio.to_thread(listens, settings))
        assert (await ask(settings, "/health/live"))[0] == 200
        assert (await ask(settings, "/health/ready"))[0] == 503, "there is no board yet"

        await make_board(settings)
        await act(settings, Action("alice", "win:1", 5))
        await eventually_async(lambda: is_drained(settings))
        status, body = await ask(settings, "/health/ready")

        assert status == 200
        (partition,) = json.loads(body)["partitions"]
        assert (partition["board"], partition["part"], partition["condition"]) == (
            "main",
            0,
            "flushing",
        )
        assert partition["committed"]["seq"] == 1
        assert (await ask(settings, "/health/ready", "HEAD")) == (200, "")
        assert (await ask(settings, "/elsewhere"))[0] == 404
        assert (await ask(settings, "/metrics", "POST"))[0] == 405


def listens(settings: Settings) -> bool:
    try:
        get(settings, "/health/live")
    except OSError:
        return False
    return True


async def test_a_stalled_backlog_makes_the_flusher_not_ready(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is never released, so every flusher is a healthy standby and none commits."""
    monkeypatch.setattr("flusher.status.STALLED_S", 1.0)
    await make_board(settings)
    lease = {"class": LEASE_LOCK, "key": zlib.crc32(b"main:0") - 2**31}
    async with await connect(settings, name="orphan", idle_session_timeout="0") as orphan:
        await orphan.execute("SELECT pg_advisory_lock(%(class)s, %(key)s)", lease)
        async with flushing(settings):
            await eventually_async(lambda: answers(settings, 200, "standby"))
            await act(settings, Action("alice", "win:1", 5))
            await eventually_async(lambda: answers(settings, 503, "standby"))

            await orphan.close()

            await eventually_async(lambda: answers(settings, 200, "flushing"))
            check_invariants(settings, [("alice", "win:1", 5)])


async def answers(settings: Settings, status: int, condition: str) -> bool:
    if not await asyncio.to_thread(listens, settings):
        return False
    found, body = await ask(settings, "/health/ready")
    partitions = json.loads(body)["partitions"]
    return (found, [partition["condition"] for partition in partitions]) == (status, [condition])


async def test_lag_and_age_are_measured_without_postgres(
    redis_url: str, own_postgres: OwnPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scoreboard.ledger.migrations import migrate

    monkeypatch.setattr("flusher.partition.backoff_s", lambda *_: 0.05)
    postgres = own_postgres()
    migrate(postgres.url)
    settings = Settings(
        redis_url=Secret(redis_url),
        database_url=Secret(postgres.url),
        flusher_metrics_port=find_free_port(),
    )
    await make_board(settings)
    async with flushing(settings):
        await act(settings, Action("alice", "win:1", 5))
        await eventually_async(lambda: is_drained(settings))
        postgres.kill()
        await act(settings, *(Action("bob", f"win:{number}", 1) for number in range(7)))

        async def is_seen() -> bool:
            text = (await ask(settings, "/metrics"))[1]
            return (
                metric(text, 'stream_length{board="main",part="0"') == 7
                and metric(text, 'stream_lag_entries{board="main",part="0"') == 7
                and metric(text, 'stream_oldest_unacked_age_seconds{board="main",part="0"') > 1
            )

        await eventually_async(is_seen)
        await eventually_async(lambda: answers(settings, 503, "database_away"))
        await asyncio.to_thread(postgres.start)
        await eventually_async(lambda: is_drained(settings))

    check_invariants(settings)


async def test_the_committed_position_is_stored_in_redis(settings: Settings) -> None:
    from tests.support.servers.flushers import MAIN, store_of

    await make_board(settings)
    async with flushing(settings), store_of(settings) as store:
        await act(settings, *(Action("bob", f"win:{number}", 1) for number in range(7)))
        await eventually_async(lambda: is_drained(settings))

        assert (await store.state(MAIN)).committed_seq == 7


def run_until_exit(settings: Settings, tmp_path: Path, **environment: str) -> tuple[int, str]:
    process = FlusherProcess(settings, tmp_path / "log", **environment)
    process.start()
    try:
        return process.process.wait(60), process.log.read_text()
    finally:
        process.kill()


def test_a_redis_that_may_lose_data_is_refused(
    database_url: str, own_valkey: OwnValkey, tmp_path: Path
) -> None:
    valkey = own_valkey(settings={"appendfsync": "everysec"})
    settings = Settings(redis_url=Secret(valkey.url), database_url=Secret(database_url))

    code, log = run_until_exit(settings, tmp_path)

    assert code == 1
    assert "appendfsync is everysec, must be always" in log


def test_an_outdated_database_is_refused(
    redis_url: str, empty_database_url: str, tmp_path: Path
) -> None:
    settings = Settings(redis_url=Secret(redis_url), database_url=Secret(empty_database_url))

    code, log = run_until_exit(settings, tmp_path)

    assert code == 1
    assert "run scoreboard db migrate" in log


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"SCOREBOARD_FLUSH_BATCH": "many"}, "SCOREBOARD_FLUSH_BATCH"),
        ({"SCOREBOARD_FLUSH_BACH": "10"}, "SCOREBOARD_FLUSH_BACH"),
        ({"DATABASE_URL": ""}, "DATABASE_URL"),
    ],
)
def test_an_invalid_setting_is_reported_in_one_line(
    environment: dict[str, str], named: str
) -> None:
    base = {"REDIS_URL": "redis://127.0.0.1:1", "DATABASE_URL": "postgresql://127.0.0.1:1/x"}
    done = subprocess.run(
        [sys.executable, "-m", "flusher"],
        env=base | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert named in done.stderr
    assert len(done.stderr.splitlines()) == 1


async def test_the_flusher_waits_for_its_servers(
    own_valkey: OwnValkey, own_postgres: OwnPostgres, tmp_path: Path
) -> None:
    from scoreboard.ledger.migrations import migrate

    valkey, postgres = own_valkey(), own_postgres()
    migrate(postgres.url)
    settings = Settings(
        redis_url=Secret(valkey.url),
        database_url=Secret(postgres.url),
        flusher_metrics_port=find_free_port(),
    )
    await make_board(settings)
    await act(settings, Action("alice", "win:1", 5))
    postgres.stop()
    valkey.stop()

    port = str(settings.flusher_metrics_port)
    with FlusherProcess(
        settings, tmp_path / "log", SCOREBOARD_FLUSHER_METRICS_PORT=port
    ) as process:
        process.wait_for("dependency_unavailable")
        # Otherwise a probe would end the process, which cannot do better.
        assert (await ask(settings, "/health/live"))[0] == 200
        assert (await ask(settings, "/health/ready"))[0] == 503
        await asyncio.to_thread(valkey.start)
        process.wait_for("dependency_unavailable", count=2)
        await asyncio.to_thread(postgres.start)
        await eventually_async(lambda: is_drained(settings))
        assert process.stop() == 0
        assert eventually(lambda: process.lines("flusher_stopped"))

    check_invariants(settings, [("alice", "win:1", 5)])


def test_an_unreadable_partition_does_not_affect_others(settings: Settings, tmp_path: Path) -> None:
    """The flusher reads keys of every board to find partitions."""
    asyncio.run(make_board(settings))
    query(settings, "INSERT INTO boards VALUES ('other', 1, 60, 1, true)")
    for board, part in (("main", 1), ("other", 0)):
        query(settings, "INSERT INTO flush_state VALUES (%s, %s, 1, 0, '0-0')", board, part)
    events = PartitionKeys(Partition("other")).events
    with redis.Redis.from_url(settings.redis_url.reveal()) as client:
        client.set(PartitionKeys(Partition("main", 1)).meta, "x")
        client.set(events, "x")
        with FlusherProcess(settings, tmp_path / "flusher.log") as flusher:
            flusher.wait_for("partition_unreadable", count=2)
            asyncio.run(act(settings, Action("alice", "win:1", 5)))
            eventually(lambda: is_drained(settings))
            client.delete(events)
            client.xadd(events, {"u": "alice"})

            client.publish(ACTIVE, events)
            eventually(
                lambda: [
                    line
                    for line in flusher.lines("partition_condition_changed")
                    if line["scoreboard.partition"] == "other:0"
                ]
            )
