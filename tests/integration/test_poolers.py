"""A pooler before PostgreSQL is refused by name, unless it keeps sessions."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from cli.embedded import os_user
from cli.embedded.ports import find_free_port
from flusher.service import Flusher
from scoreboard.errors import DatabaseUnavailable, UnsafeDatabase
from scoreboard.ledger import migrations
from scoreboard.ledger.pool import connect
from scoreboard.ledger.sessions import require_session
from scoreboard.model import Action
from scoreboard.runtime.lifecycle import StopEvent
from scoreboard.runtime.settings import Secret, Settings
from tests.support.clients.commands import Run
from tests.support.eventually import eventually, eventually_async
from tests.support.fakes.pooler import MakePooler
from tests.support.servers.flushers import act, check_invariants, flushing, is_drained, make_board

pytestmark = pytest.mark.slow

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


def settings_of(redis_url: str, database_url: str) -> Settings:
    return Settings(
        redis_url=Secret(redis_url),
        database_url=Secret(database_url),
        flusher_metrics_port=0,
        database_timeout_s=3.0,
    )


async def refusal(settings: Settings) -> str:
    """Start a flusher; return the reason why it ends."""
    with pytest.raises(UnsafeDatabase) as caught:
        async with asyncio.timeout(40):
            await Flusher(settings).serve(StopEvent(2.0))
    return caught.value.detail


async def test_a_direct_connection_is_accepted(redis_url: str, database_url: str) -> None:
    settings = settings_of(redis_url, database_url)
    async with await connect(settings, name="test") as connection:
        await require_session(settings, connection)


@pytest.mark.parametrize("size", [1, 2, 5])
async def test_a_transaction_pooler_is_refused_by_name(
    size: int, redis_url: str, make_pooler: MakePooler
) -> None:
    pooler = await make_pooler(size=size)

    reason = await refusal(settings_of(redis_url, pooler.url))

    assert "shares the session with other clients" in reason
    assert "PgBouncer in transaction mode" in reason


async def test_a_transaction_pooler_is_detected_with_other_clients(
    redis_url: str, make_pooler: MakePooler
) -> None:
    pooler = await make_pooler(size=8)
    settings = settings_of(redis_url, pooler.url)
    stop = asyncio.Event()

    async def send_queries() -> None:
        async with await psycopg.AsyncConnection.connect(
            pooler.url, autocommit=True, prepare_threshold=None
        ) as one:
            while not stop.is_set():
                await one.execute("SELECT pg_sleep(0.001)")

    others = [asyncio.create_task(send_queries()) for _ in range(3)]
    try:
        for _ in range(10):
            async with await connect(settings, name="test") as connection:
                with pytest.raises(UnsafeDatabase):
                    await require_session(settings, connection)
    finally:
        stop.set()
        await asyncio.gather(*others)


async def test_a_pooler_that_refuses_session_settings_is_refused_by_name(
    redis_url: str, make_pooler: MakePooler
) -> None:
    """PgBouncer refuses them by default."""
    pooler = await make_pooler(options="refuse", keeps=True)

    reason = await refusal(settings_of(redis_url, pooler.url))

    assert "The session settings are refused" in reason
    assert "PgBouncer" in reason


async def test_a_pooler_that_drops_session_settings_is_refused_by_name(
    redis_url: str, make_pooler: MakePooler
) -> None:
    """PgBouncer does so with ignore_startup_parameters; limits and durability would be lost."""
    pooler = await make_pooler(options="drop", keeps=True)

    reason = await refusal(settings_of(redis_url, pooler.url))

    assert "PostgreSQL did not get the session settings" in reason


async def test_a_pooler_that_keeps_sessions_is_used(
    redis_url: str, database_url: str, make_pooler: MakePooler
) -> None:
    pooler = await make_pooler(keeps=True, size=20)
    settings = settings_of(redis_url, pooler.url)

    async with await connect(settings, name="test") as connection:
        await require_session(settings, connection)


async def test_a_pooler_without_a_free_session_is_unavailable(
    redis_url: str, make_pooler: MakePooler
) -> None:
    pooler = await make_pooler(keeps=True, size=1)
    settings = settings_of(redis_url, pooler.url)

    async with await connect(settings, name="test") as connection:
        with pytest.raises(DatabaseUnavailable, match="no free connection"):
            await require_session(settings, connection)


async def test_commands_and_migrations_refuse_a_pooler(
    command: Run, make_pooler: MakePooler, monkeypatch: pytest.MonkeyPatch
) -> None:
    pooler = await make_pooler()
    monkeypatch.setenv("DATABASE_URL", pooler.url)

    listed = await asyncio.to_thread(command, "board", "list")
    migrated = await asyncio.to_thread(command, "db", "migrate")

    assert (listed.code, migrated.code) == (1, 1)
    assert "PgBouncer" in listed.err
    assert "PgBouncer" in migrated.err
    with pytest.raises(UnsafeDatabase):
        await asyncio.to_thread(migrations.migrate, pooler.url)


# The real PgBouncer -----------------------------------------------------------------------------


@pytest.fixture
def pgbouncer(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Bouncer"]:
    if PGBOUNCER is None:
        pytest.skip("pgbouncer is not installed")
    made = Bouncer(PGBOUNCER, database_url, tmp_path_factory.mktemp("pgbouncer"))
    try:
        yield made
    finally:
        made.stop()


class Bouncer:
    """PgBouncer before the test's database."""

    def __init__(self, program: str, database_url: str, folder: Path) -> None:
        self._program = program
        self._target = urlsplit(database_url)
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._log = (folder / "log").open("wb")

    def start(self, *lines: str) -> str:
        port = find_free_port()
        target = self._target
        config = self._folder / "pgbouncer.ini"
        config.write_text(
            "[databases]\n"
            f"* = host={target.hostname} port={target.port} user={target.username}"
            f" password={target.password}\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            "auth_type = any\n" + "\n".join(lines) + "\n"
        )
        user = os_user.choose_postgres_user(allow_namespace=True)
        self._process = subprocess.Popen(
            [*user.prefix, self._program, str(config)], stdout=self._log, stderr=self._log
        )
        url = f"postgresql://any@127.0.0.1:{port}{target.path}"

        def listens() -> bool:
            try:
                psycopg.connect(url, connect_timeout=30).close()
            except psycopg.OperationalError:
                return False
            return True

        eventually(listens)
        return url

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
        self._log.close()


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["pool_mode = session"], "The session settings are refused"),
        (["pool_mode = transaction"], "The session settings are refused"),
        (
            ["pool_mode = transaction", "ignore_startup_parameters = options"],
            "PostgreSQL did not get the session settings",
        ),
        (
            ["pool_mode = session", "ignore_startup_parameters = options"],
            "PostgreSQL did not get the session settings",
        ),
        (
            [
                "pool_mode = transaction",
                "ignore_startup_parameters = options",
                "server_check_delay = 0",
            ],
            "PostgreSQL did not get the session settings",
        ),
    ],
)
async def test_pgbouncer_is_refused_by_name(
    lines: list[str], reason: str, pgbouncer: Bouncer, redis_url: str
) -> None:
    url = await asyncio.to_thread(pgbouncer.start, *lines)
    started_at = time.monotonic()

    detail = await refusal(settings_of(redis_url, url))

    assert reason in detail
    assert "PgBouncer" in detail
    assert time.monotonic() - started_at < 20


@pytest.mark.parametrize("mode", ["transaction", "session"])
async def test_pgbouncer_with_the_settings_of_the_role_is_accepted_in_session_mode(
    mode: str, pgbouncer: Bouncer, redis_url: str, database_url: str
) -> None:
    """A role can have the settings, so that they apply although `options` are dropped."""
    user = urlsplit(database_url).username
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"ALTER ROLE {user} SET lock_timeout = '5s'".encode())
    try:
        url = await asyncio.to_thread(
            pgbouncer.start, f"pool_mode = {mode}", "ignore_startup_parameters = options"
        )
        settings = settings_of(redis_url, url)
        if mode == "transaction":
            assert "shares the session" in await refusal(settings)
            return
        await make_board(settings_of(redis_url, database_url))
        async with flushing(settings):
            await act(settings, Action("alice", "a", 5))
            await eventually_async(lambda: is_drained(settings))
        check_invariants(settings, [("alice", "a", 5)])
    finally:
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(f"ALTER ROLE {user} RESET lock_timeout".encode())
