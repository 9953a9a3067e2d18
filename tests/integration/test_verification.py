"""The flusher verifies its boards by itself: after a takeover, and all users continuously."""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from prometheus_client import generate_latest

from cli.embedded.ports import find_free_port
from cli.embedded.servers import EmbeddedValkey
from flusher.idle_boards import IdleBoards
from flusher.status import Condition
from flusher.verification import Verification
from scoreboard.errors import DatabaseUnavailable
from scoreboard.ledger.pool import connect
from scoreboard.model import Action, Board, Layout, Partition, pack, partition_of
from scoreboard.recovery.drift import Drift
from scoreboard.recovery.repair import repair
from scoreboard.recovery.reseed import report_nothing
from scoreboard.recovery.rolling_check import RollingCheck
from scoreboard.recovery.verify import verify
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.runtime.telemetry import REGISTRY
from scoreboard.store.client import make_client
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.store import Store
from tests.support.clients.commands import Run
from tests.support.eventually import eventually, eventually_async
from tests.support.fakes.proxy import MakeProxy
from tests.support.servers.flushers import (
    FlusherProcess,
    act,
    flushing,
    is_drained,
    make_board,
    query,
)

pytestmark = pytest.mark.slow

KEYS = PartitionKeys(Partition("main"))
USERS = [f"user-{number:02}" for number in range(40)]


@pytest.fixture
def settings(redis_url: str, database_url: str) -> Settings:
    return Settings(
        redis_url=Secret(redis_url), database_url=Secret(database_url), flusher_metrics_port=0
    )


@pytest.fixture
def admin(redis_url: str) -> Iterator["redis.Redis[str]"]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


async def fill(settings: Settings, board: Board | None = None) -> None:
    """Open a board and let a flusher commit one action of each user."""
    board = await make_board(settings, board)
    await act(settings, *(Action(user, "win:1", 10) for user in USERS), board=board.name)
    partitions = board.layout.partitions
    async with flushing(settings):
        await eventually_async(lambda: is_drained(settings, board.name, partitions))


@asynccontextmanager
async def rolling(settings: Settings, board: Board) -> AsyncIterator[tuple[RollingCheck, Any]]:
    async with (
        make_client(settings, name="test") as client,
        await connect(settings, name="test") as connection,
    ):
        yield RollingCheck(client, board), connection


async def take_passes(check: RollingCheck, connection: Any, count: int, *, page: int) -> None:
    """Take steps until ``count`` passes have ended; a pass over few users needs few steps."""
    for _ in range(count * (2 * len(USERS) // page + 20)):
        if check.passes >= count:
            return
        await check.step(connection, page)
    raise AssertionError(f"{check.passes} passes ended instead of {count}")


@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize("page", [1, 7, 500])
async def test_two_passes_find_every_difference_in_both_directions(
    page: int, partitions: int, settings: Settings, admin: "redis.Redis[str]"
) -> None:
    board = Board(layout=Layout(partitions=partitions))
    await fill(settings, board)

    def key(user: str) -> str:
        return PartitionKeys(Partition("main", partition_of(user, partitions))).board

    async with rolling(settings, board) as (check, connection):
        await take_passes(check, connection, 2, page=page)
        assert check.drifted == {}

        admin.zadd(key("user-07"), {"user-07": pack(99, 0)})
        admin.zrem(key("user-08"), "user-08")
        admin.zadd(key("ghost"), {"ghost": pack(5, 0)})
        await take_passes(check, connection, 4, page=page)

        found = {user: (one.redis, one.wanted) for user, one in check.drifted.items()}
        assert found == {"user-07": (99, 10), "user-08": (0, 10), "ghost": (5, 0)}

        admin.zrem(key("ghost"), "ghost")
        admin.zadd(key("user-08"), {"user-08": pack(10, 0)})
        for _ in range(3 * partitions):  # users that differed are compared again at once
            await check.step(connection, 1)
        assert set(check.drifted) == {"user-07"}


async def test_uncommitted_actions_are_no_drift_and_a_long_backlog_postpones(
    settings: Settings, admin: "redis.Redis[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    from scoreboard.errors import Busy

    await fill(settings)
    await act(settings, *(Action(user, "win:2", 5) for user in [*USERS[:5], "newcomer"]))
    async with rolling(settings, Board()) as (check, connection):
        await take_passes(check, connection, 2, page=10)
        assert check.drifted == {}

        monkeypatch.setattr("scoreboard.recovery.rolling_check.LAG_MAX", 5)
        with pytest.raises(Busy, match="6 actions of main:0 wait"):
            await take_passes(check, connection, 4, page=10)


async def test_memory_is_bounded_if_every_user_differs(
    settings: Settings, admin: "redis.Redis[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoreboard.recovery.rolling_check.DRIFTED_MAX", 7)
    await fill(settings)
    admin.delete(KEYS.board)
    async with rolling(settings, Board()) as (check, connection):
        await take_passes(check, connection, 2, page=10)

    assert len(check.drifted) == 7


class Served:
    """A flusher process with its metrics, health and log."""

    def __init__(self, process: FlusherProcess, port: int) -> None:
        self.process = process
        self._port = port

    def get(self, path: str) -> str:
        url = f"http://127.0.0.1:{self._port}{path}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.read().decode()

    def metric(self, name: str) -> float | None:
        """Return the value of a metric with its labels; None if it is missing."""
        try:
            lines = self.get("/metrics").splitlines()
        except OSError:
            return None
        return next((float(one.split()[-1]) for one in lines if one.startswith(f"{name} ")), None)

    def checks(self) -> dict[str, dict[str, str]]:
        try:
            return json.loads(self.get("/health/ready"))["checks"]
        except urllib.error.HTTPError as error:  # not ready yet
            with error:
                return json.loads(error.read())["checks"]


@pytest.fixture
async def served(settings: Settings, tmp_path: Path) -> AsyncIterator[Served]:
    await fill(settings)
    port = find_free_port()
    environment = {"SCOREBOARD_FLUSHER_METRICS_PORT": str(port)}
    with FlusherProcess(settings, tmp_path / "flusher.log", **environment) as process:
        yield Served(process, port)


DRIFT = 'scoreboard_drift_users{board="main"}'
VERIFIED_AT = 'scoreboard_verify_last_success_timestamp_seconds{board="main"}'


def verified(result: str) -> str:
    return f'scoreboard_verify_total{{board="main",result="{result}"}}'


async def test_a_changed_score_is_counted_and_logged_until_it_is_repaired(
    served: Served, admin: "redis.Redis[str]", command: Run
) -> None:
    await asyncio.to_thread(eventually, lambda: served.metric(verified("sound")), 30)
    assert served.metric(DRIFT) == 0
    assert served.checks()["drift main"]["state"] == "none"

    admin.zadd(KEYS.board, {"user-07": pack(99, 0)})

    await asyncio.to_thread(eventually, lambda: served.metric(DRIFT) == 1, 30)
    line = await asyncio.to_thread(served.process.wait_for, "drift_found")
    assert line["log.level"] == "error"
    assert line["scoreboard.examples"] == ["user-07: 99 instead of 10"]
    assert line["scoreboard.advice"] == "scoreboard repair --board main"
    found = served.checks()["drift main"]
    assert (found["state"], found["advice"]) == ("drifted", "scoreboard repair --board main")
    assert found["detail"].startswith("1 user differs")

    assert (await asyncio.to_thread(command, "repair", "--yes")).code == 0

    await asyncio.to_thread(eventually, lambda: served.metric(DRIFT) == 0, 30)
    await asyncio.to_thread(served.process.wait_for, "drift_ended")
    assert served.checks()["drift main"]["state"] == "none"


async def test_a_member_that_postgresql_cannot_hold_is_drift(
    served: Served, admin: "redis.Redis[str]", command: Run
) -> None:
    admin.zadd(KEYS.board, {"user\0-07": pack(99, 0)})

    await asyncio.to_thread(eventually, lambda: served.metric(DRIFT) == 1, 30)
    assert served.process.process.poll() is None

    assert (await asyncio.to_thread(command, "verify", "--full")).code == 1
    assert (await asyncio.to_thread(command, "repair", "--yes")).code == 0
    await asyncio.to_thread(eventually, lambda: served.metric(DRIFT) == 0, 30)


async def test_a_repair_changes_nothing_while_its_audit_row_cannot_be_written(
    settings: Settings, admin: "redis.Redis[str]"
) -> None:
    await fill(settings)
    packed = pack(99, 0)
    admin.zadd(KEYS.board, {"user-07": packed})
    async with (
        make_client(settings, name="test") as client,
        await connect(settings, name="other", autocommit=False) as other,
        await connect(settings, name="test", lock_timeout="100ms") as connection,
    ):
        await other.execute("INSERT INTO audit_log (actor, action) VALUES ('other', 'fence')")
        drift = Drift("user-07", 0, 99, 10)
        with pytest.raises(DatabaseUnavailable):
            await repair(
                Store(client), connection, Board(), [drift], actor="test", report=report_nothing
            )

    assert admin.zscore(KEYS.board, "user-07") == packed


async def test_an_unexpected_error_does_not_end_the_flusher(
    settings: Settings, tmp_path: Path
) -> None:
    await fill(settings)
    query(settings, "ALTER TABLE backups RENAME TO elsewhere")
    port = find_free_port()
    environment = {"SCOREBOARD_FLUSHER_METRICS_PORT": str(port)}
    with FlusherProcess(settings, tmp_path / "flusher.log", **environment) as process:
        line = await asyncio.to_thread(process.wait_for, "verification_connection_failed")
        await act(settings, Action("user-00", "win:2", 10))
        await eventually_async(lambda: is_drained(settings))
        verified_at = Served(process, port).metric(VERIFIED_AT)

    assert line["error.type"] == "UndefinedTable"
    assert verified_at == 0, "without the series, VerifyOverdue would never fire"


async def test_a_repair_judges_what_remains_of_users_that_have_acted_meanwhile(
    served: Served, settings: Settings, admin: "redis.Redis[str]", command: Run
) -> None:
    """Their rows in the ledger contradict each other until the corrections are recorded."""
    admin.zadd(KEYS.board, {"user-07": pack(99, 0)})
    await act(settings, Action("user-07", "win:2", 5))
    await eventually_async(lambda: is_drained(settings))
    found = await asyncio.to_thread(command, "verify", "--full", "--json")
    assert [one["check"] for one in json.loads(found.out)["findings"]] == ["chain"]

    done = await asyncio.to_thread(command, "repair", "--yes", "--json")

    assert (done.code, json.loads(done.out)["left"]) == (0, [])
    assert (await asyncio.to_thread(command, "verify", "--full")).code == 0


async def test_a_takeover_is_followed_by_a_verification(
    settings: Settings, admin: "redis.Redis[str]", tmp_path: Path
) -> None:
    """It finds what the comparison of users does not: rows that the ledger does not explain."""
    await fill(settings)
    query(settings, "UPDATE scores SET actions = actions + 1")
    with FlusherProcess(settings, tmp_path / "flusher.log") as process:
        line = await asyncio.to_thread(process.wait_for, "verification_findings")

    assert line["scoreboard.count"] == len(USERS)
    assert line["scoreboard.findings"][0].startswith("ledger sum: user-00")
    assert line["scoreboard.advice"] == "scoreboard verify --board main"


async def test_a_reconnection_to_redis_is_followed_by_a_verification(
    settings: Settings,
    make_proxy: MakeProxy,
    valkey_server: EmbeddedValkey,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flusher.verification.SAMPLE_EVERY_S", 0.0)
    started: list[str] = []

    async def noted(*arguments: Any, **options: Any) -> Any:
        started.append(arguments[2].name)
        return await verify(*arguments, **options)

    monkeypatch.setattr("flusher.verification.verify", noted)
    await fill(settings)
    proxy = await make_proxy(valkey_server.port)
    away = msgspec.structs.replace(
        settings, redis_url=Secret(proxy.through(settings.redis_url.reveal()))
    )
    async with flushing(away) as flusher:
        await eventually_async(lambda: started == ["main"], within_s=10)
        proxy.refuse()
        status = flusher.partitions[0].status
        await eventually_async(lambda: status.condition is Condition.REDIS_AWAY, within_s=10)
        await proxy.restore()

        await eventually_async(lambda: started == ["main", "main"], within_s=15)


async def test_a_flusher_that_has_just_started_tells_of_each_board(settings: Settings) -> None:
    await fill(settings)
    async with flushing(settings) as flusher:
        not_yet_run = Verification(settings, lambda: flusher.partitions)
        await eventually_async(lambda: "drift main" in not_yet_run.checks())


async def test_a_standby_does_not_verify(
    served: Served, settings: Settings, tmp_path: Path
) -> None:
    await asyncio.to_thread(served.process.wait_for, "lease_taken")
    query(
        settings,
        "INSERT INTO backups (taken_at, location, check_method, recorded_by)"
        " VALUES (to_timestamp(1700000000), '/b', 'restored', 'test')",
    )
    port = find_free_port()
    environment = {"SCOREBOARD_FLUSHER_METRICS_PORT": str(port)}
    with FlusherProcess(settings, tmp_path / "standby.log", **environment) as process:
        standby = Served(process, port)
        backup = "scoreboard_backup_last_success_timestamp_seconds"
        await asyncio.to_thread(eventually, lambda: standby.metric(backup) == 1.7e9, 30)
        # Its first turn was made; the leader's steps show that it had time for others.
        before = served.metric(verified("sound")) or 0
        await asyncio.to_thread(
            eventually, lambda: (served.metric(verified("sound")) or 0) >= before + 3, 15
        )
        assert standby.metric(DRIFT) is None

        served.process.kill()

        await asyncio.to_thread(eventually, lambda: standby.metric(DRIFT) == 0, 30)


async def test_the_last_backup_is_a_metric_and_a_check(settings: Settings, tmp_path: Path) -> None:
    await fill(settings)
    query(
        settings,
        "INSERT INTO backups (taken_at, location, check_method, recorded_by)"
        " VALUES (to_timestamp(1700000000), '/b', 'restored', 'test')",
    )
    port = find_free_port()
    environment = {
        "SCOREBOARD_FLUSHER_METRICS_PORT": str(port),
        "SCOREBOARD_ENVIRONMENT": "production",
    }
    with FlusherProcess(settings, tmp_path / "flusher.log", **environment) as process:
        served = Served(process, port)
        name = "scoreboard_backup_last_success_timestamp_seconds"
        await asyncio.to_thread(eventually, lambda: served.metric(name) == 1.7e9, 30)
        check = served.checks()["backup"]

    assert check["state"] == "overdue"
    assert "backup-and-restore.md" in check["advice"]


async def test_no_users_per_second_turns_the_verification_off(
    settings: Settings, tmp_path: Path
) -> None:
    await fill(settings)
    port = find_free_port()
    environment = {
        "SCOREBOARD_FLUSHER_METRICS_PORT": str(port),
        "SCOREBOARD_VERIFY_USERS_PER_S": "0",
    }
    query(
        settings,
        "INSERT INTO backups (taken_at, location, check_method, recorded_by)"
        " VALUES (to_timestamp(1700000000), '/b', 'restored', 'test')",
    )
    with FlusherProcess(settings, tmp_path / "flusher.log", **environment) as process:
        served = Served(process, port)
        name = "scoreboard_backup_last_success_timestamp_seconds"
        await asyncio.to_thread(eventually, lambda: served.metric(name), 30)
        await asyncio.to_thread(process.wait_for, "lease_taken")

        assert served.metric(DRIFT) is None
        assert served.metric(VERIFIED_AT) is None


async def test_a_difference_on_an_idle_board_is_shown_until_it_is_repaired(
    settings: Settings, admin: "redis.Redis[str]", command: Run, tmp_path: Path
) -> None:
    for name in ("main", "golf", "chess"):
        await fill(settings, Board(name))
    port = find_free_port()
    environment = {"SCOREBOARD_FLUSHER_METRICS_PORT": str(port)}
    drift = 'scoreboard_drift_users{board="golf"}'
    with FlusherProcess(settings, tmp_path / "flusher.log", **environment) as process:
        served = Served(process, port)
        sound = 'scoreboard_verify_total{board="*",result="sound"}'
        await asyncio.to_thread(eventually, lambda: (served.metric(sound) or 0) >= 2, 30)
        assert (
            served.metric('scoreboard_verify_last_success_timestamp_seconds{board="*"}') or 0
        ) > 0

        admin.zadd(PartitionKeys(Partition("golf")).board, {"user-07": pack(99, 0)})

        await asyncio.to_thread(eventually, lambda: served.metric(drift) == 1, 20)
        line = await asyncio.to_thread(process.wait_for, "drift_found")
        assert line["scoreboard.advice"] == "scoreboard repair --board golf"
        assert served.checks()["drift golf"]["state"] == "drifted"
        before = served.metric(sound) or 0
        await asyncio.to_thread(eventually, lambda: (served.metric(sound) or 0) > before, 20)

        assert (await asyncio.to_thread(command, "repair", "--board", "golf", "--yes")).code == 0

        await asyncio.to_thread(eventually, lambda: served.metric(drift) in {0, None}, 20)
        await asyncio.to_thread(process.wait_for, "drift_ended")
        await asyncio.to_thread(
            eventually, lambda: 'board="golf"' not in served.get("/metrics"), 90
        )
        assert 'board="chess"' not in served.get("/metrics")


async def test_idle_boards_are_verified_in_turns_however_large_one_is(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large board takes many steps; a visit has a few."""
    await fill(settings, Board("a-large"))
    for name in ("b", "c"):
        await make_board(settings, Board(name))
    monkeypatch.setattr("flusher.idle_boards.VISIT_STEPS", 2)
    monkeypatch.setattr("flusher.idle_boards.SHARE_S", 0.0)
    visited: list[tuple[str, int]] = []
    step = RollingCheck.step

    async def noted(self: RollingCheck, connection: Any, count: int) -> None:
        await step(self, connection, count)
        visited.append((self.board.name, self.passes))

    monkeypatch.setattr(RollingCheck, "step", noted)
    idle = IdleBoards(users_per_step=3)
    async with (
        make_client(settings, name="test") as client,
        await connect(settings, name="test") as connection,
    ):
        for _ in range(60):
            await idle.take_turn(client, connection, {"main"})
    names = [name for name, _ in visited]
    assert names[:6] == ["a-large", "a-large", "b", "b", "c", "c"]
    assert ("a-large", 1) in visited, "its visits have together reached its end"


async def test_one_process_verifies_the_idle_boards(settings: Settings) -> None:
    await make_board(settings, Board("golf"))
    counted = 'scoreboard_verify_total{board="*",result="sound"}'
    one, two = IdleBoards(users_per_step=3), IdleBoards(users_per_step=3)
    async with (
        make_client(settings, name="test") as client,
        await connect(settings, name="one") as first,
        await connect(settings, name="two") as second,
    ):
        await one.take_turn(client, first, set())
        before = sample(counted)
        await two.take_turn(client, second, set())
        assert sample(counted) == before
        await first.close()
        await eventually_async(lambda: turn_is_taken(two, client, second, counted, before))


async def turn_is_taken(
    idle: IdleBoards, client: Any, connection: Any, counted: str, before: float
) -> bool:
    await idle.take_turn(client, connection, set())
    return sample(counted) > before


def sample(name: str) -> float:
    lines = generate_latest(REGISTRY).decode().splitlines()
    return next((float(one.split()[-1]) for one in lines if one.startswith(f"{name} ")), 0.0)
