"""Secrets change while Redis and PostgreSQL are in use, and AWS becomes unreachable.

AWS Secrets Manager is moto; Redis and PostgreSQL are real.
"""

import asyncio
import itertools
import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from scoreboard.errors import DatabaseUnavailable, RedisUnavailable, SecretsUnavailable
from scoreboard.ledger import pool as postgres
from scoreboard.model import Action
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.runtime.telemetry import REGISTRY, setup_logging
from scoreboard.security.credentials import INVALIDATE_EVERY_S, refresh_secrets, secret_store
from scoreboard.store import client as redis_client
from scoreboard.store.dispatcher import Dispatcher
from scoreboard.store.durability import check_durability
from scoreboard.store.store import Store
from scoreboard.store.subscription import Subscription
from tests.support.data.boards import open_board
from tests.support.eventually import eventually_async
from tests.support.fakes.aws import SecretsManager

pytestmark = pytest.mark.slow

AWKWARD = "p@ss:/w%0rd #?\\'"
"""A password with the special characters of URLs and shells."""

REFRESH_S = 0.3
"""Below the least value of the setting, so that tests are short."""


class RedisUser:
    """An ACL user of the server with its current passwords."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.admin = redis.Redis.from_url(url, decode_responses=True)
        self.address = f"redis://{parts.hostname}:{parts.port}/0"
        self.change("reset", "on", "~*", "&*", "+@all")

    def change(self, *rules: str) -> None:
        self.admin.execute_command("ACL", "SETUSER", "app", *rules)

    def connections(self, *names: str) -> set[str]:
        return {
            client["id"]
            for client in self.admin.client_list()
            if client["user"] == "app" and (not names or client["name"] in names)
        }

    def refusals(self) -> int:
        return sum(int(entry["count"]) for entry in self.admin.acl_log())

    def close(self) -> None:
        self.admin.execute_command("ACL", "DELUSER", "app")
        self.admin.close()


@pytest.fixture
def redis_user(redis_url: str) -> Iterator[RedisUser]:
    user = RedisUser(redis_url)
    yield user
    user.close()


class Logins:
    """Two roles of PostgreSQL with the same rights."""

    NAMES = ("app_a", "app_b")

    def __init__(self, url: str) -> None:
        self.admin = psycopg.connect(url, autocommit=True)
        self.address = urlsplit(url)._replace(netloc=urlsplit(url).netloc.rpartition("@")[2])
        for name in self.NAMES:
            self.admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))

    def set_password(self, name: str, password: str) -> None:
        alter = sql.SQL("ALTER ROLE {} PASSWORD {}")
        self.admin.execute(alter.format(sql.Identifier(name), sql.Literal(password)))

    def end_sessions(self) -> None:
        self.admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = ANY(%s)",
            (list(self.NAMES),),
        )

    def users(self) -> set[str]:
        found = self.admin.execute(
            "SELECT usename FROM pg_stat_activity WHERE application_name = 'scoreboard-test'"
        )
        return {str(row[0]) for row in found}

    def close(self) -> None:
        self.end_sessions()
        for name in self.NAMES:
            self.admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))
        self.admin.close()


@pytest.fixture
def logins(database_url: str) -> Iterator[Logins]:
    logins = Logins(database_url)
    yield logins
    logins.close()


def reads_of(owner: str) -> float:
    return sum(
        REGISTRY.get_sample_value(
            "scoreboard_secret_refresh_total", {"owner": owner, "outcome": outcome}
        )
        or 0.0
        for outcome in ("changed", "same", "failed")
    )


def redis_settings(address: str, secret: str, **changes: object) -> Settings:
    changes = {"secrets": "aws", "redis_secret": secret, "secrets_refresh_s": REFRESH_S} | changes
    return Settings(redis_url=Secret(address), **changes)  # pyright: ignore[reportArgumentType]


def database_settings(logins: Logins, secret: str, **changes: object) -> Settings:
    return Settings(
        redis_url=Secret("redis://127.0.0.1:1"),
        database_url=Secret(logins.address.geturl()),
        secrets="aws",
        secrets_refresh_s=REFRESH_S,
        database_secret=secret,
        **changes,  # pyright: ignore[reportArgumentType]
    )


@asynccontextmanager
async def fast_refresh(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Check for changes as services do, but more often."""
    monkeypatch.setattr("scoreboard.security.credentials.CHECK_S", 0.05)
    task = asyncio.create_task(refresh_secrets())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def light_load(*works: Callable[[int], Awaitable[object]]) -> AsyncIterator[list[int]]:
    """Repeat each call until the block ends; yield the count of calls. An error fails the test."""
    done = [0]
    stop = asyncio.Event()

    async def repeat(work: Callable[[int], Awaitable[object]]) -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            await work(number)
            done[0] += 1
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.002)

    async with asyncio.TaskGroup() as group:
        for work in works:
            group.create_task(repeat(work))
        try:
            yield done
        finally:
            stop.set()


async def test_redis_stays_available_during_password_rotations(
    secrets_manager: SecretsManager, redis_user: RedisUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_user.change(">first")
    secret = secrets_manager.create("app", "first")
    settings = redis_settings(redis_user.address, secret)
    client = redis_client.make_client(settings, name="test")
    dispatcher = Dispatcher(settings)

    updates = 0

    async def update(number: int) -> None:
        nonlocal updates
        await dispatcher.submit("main", Action("alice", f"win:{number}", 1))
        updates += 1

    async with fast_refresh(monkeypatch), asyncio.TaskGroup() as group:
        await open_board(Store(client))
        group.create_task(dispatcher.run())
        async with light_load(update, *[lambda _: client.incr("load")] * 3) as done:
            old = "first"
            for new in ("second", AWKWARD, "fourth"):
                before, count = redis_user.connections(), done[0]
                redis_user.change(f">{new}")
                await asyncio.to_thread(secrets_manager.put, secret, "app", new)
                await eventually_async(
                    lambda before=before: bool(redis_user.connections() - before)
                )
                redis_user.change(f"<{old}")
                await eventually_async(lambda count=count: done[0] > count + 50)
                old = new
        dispatcher.close()
    standing = await Store(client).standing("main", "alice")
    await client.aclose()

    assert done[0] > 150
    assert standing.score == updates


async def test_connections_stay_in_use_while_the_new_login_is_refused(
    secrets_manager: SecretsManager, redis_user: RedisUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A secret that was changed before the server's password."""
    redis_user.change(">first")
    secret = secrets_manager.create("app", "first")
    settings = redis_settings(redis_user.address, secret)
    client = redis_client.make_client(settings, name="test")
    dispatcher = Dispatcher(settings)
    downs: list[None] = []
    ups: list[None] = []
    subscription = Subscription(
        settings,
        ["sb:test"],
        name="subscriber",
        on_change=lambda _: None,
        on_up=lambda: ups.append(None),
        on_down=lambda: downs.append(None),
    )

    async with fast_refresh(monkeypatch), asyncio.TaskGroup() as group:
        await open_board(Store(client))
        group.create_task(dispatcher.run())
        listening = group.create_task(subscription.run())
        await eventually_async(lambda: subscription.is_up)
        await dispatcher.submit("main", Action("alice", "win:1", 1))
        before = redis_user.connections("scoreboard-dispatcher", "scoreboard-subscriber")
        refused = redis_user.refusals()

        await asyncio.to_thread(secrets_manager.put, secret, "app", "second")
        await eventually_async(lambda: redis_user.refusals() >= refused + 3)
        await dispatcher.submit("main", Action("alice", "win:2", 1))
        kept = redis_user.connections("scoreboard-dispatcher", "scoreboard-subscriber")
        redis_user.change(">second")
        await eventually_async(lambda: not redis_user.connections() & before)
        await dispatcher.submit("main", Action("alice", "win:3", 1))
        listening.cancel()
        dispatcher.close()
    await client.aclose()

    assert before <= kept
    assert not downs
    assert len(ups) == 2


async def test_no_message_is_lost_while_a_subscription_is_replaced(
    secrets_manager: SecretsManager, redis_user: RedisUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_user.change(">first", ">second")
    secret = secrets_manager.create("app", "first")
    heard: list[str] = []
    reads: list[int] = []
    sent = 0

    subscription = Subscription(
        redis_settings(redis_user.address, secret),
        [f"sb:test:{number}" for number in range(400)],
        name="subscriber",
        on_change=heard.append,
        on_up=lambda: reads.append(sent),
        on_down=lambda: pytest.fail("the subscription was lost"),
    )
    async with fast_refresh(monkeypatch), asyncio.TaskGroup() as group:
        listening = group.create_task(subscription.run())
        await eventually_async(lambda: subscription.is_up)
        before = redis_user.connections("scoreboard-subscriber")
        await asyncio.to_thread(secrets_manager.put, secret, "app", "second")

        async def is_replaced() -> bool:
            nonlocal sent
            # Each channel gets one message: a lost one is missed.
            await asyncio.to_thread(redis_user.admin.publish, f"sb:test:{sent}", "1:1")
            sent += 1
            return not redis_user.connections() & before

        await eventually_async(is_replaced, every_s=0.01)
        await eventually_async(
            lambda: {f"sb:test:{number}" for number in range(reads[-1], sent)} <= set(heard)
        )
        listening.cancel()

    missed = {f"sb:test:{number}" for number in range(sent)} - set(heard)
    assert sent > 10
    # What was not heard was sent before the last read of everything.
    assert all(int(one.rpartition(":")[2]) < reads[-1] for one in missed)


async def test_a_changed_redis_password_is_used_after_a_failed_login(
    secrets_manager: SecretsManager, redis_user: RedisUser
) -> None:
    redis_user.change(">first")
    secret = secrets_manager.create("app", "first")
    client = redis_client.make_client(redis_settings(redis_user.address, secret), name="test")
    await client.ping()

    redis_user.change("resetpass", f">{AWKWARD}")
    secrets_manager.put(secret, "app", AWKWARD)
    await client.connection_pool.disconnect()

    assert await client.ping()
    await client.aclose()


async def test_a_busy_redis_connection_reauthenticates_after_use(
    secrets_manager: SecretsManager, redis_user: RedisUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_user.change(">first", ">second")
    secret = secrets_manager.create("app", "first")
    pool = redis_client.make_pool(redis_settings(redis_user.address, secret), name="test")
    async with fast_refresh(monkeypatch):
        idle, busy = await pool.get_connection(), await pool.get_connection()
        await pool.release(idle)

        await asyncio.to_thread(secrets_manager.put, secret, "app", "second")
        await eventually_async(lambda: not idle.is_connected)
        stayed_connected = busy.is_connected
        await pool.release(busy)

    assert stayed_connected
    assert not busy.is_connected
    await pool.aclose()


async def test_stored_credentials_override_the_url(
    secrets_manager: SecretsManager, redis_user: RedisUser
) -> None:
    redis_user.change(">first")
    secret = secrets_manager.create("app", "first")
    address = redis_user.address.replace("redis://", "redis://default:wrong@")
    client = redis_client.make_client(redis_settings(address, secret), name="test")

    assert await client.acl_whoami() == "app"
    await client.aclose()


async def test_a_wrong_secret_makes_redis_unavailable_and_is_not_read_constantly(
    secrets_manager: SecretsManager, redis_user: RedisUser
) -> None:
    redis_user.change(">right")
    secret = secrets_manager.create("app", "wrong")
    settings = redis_settings(redis_user.address, secret, secrets_refresh_s=120.0)
    client = redis_client.make_client(settings, name="test")
    dispatcher = Dispatcher(settings)
    before, began_s = reads_of("redis"), time.monotonic()

    async with asyncio.TaskGroup() as group:
        group.create_task(dispatcher.run())
        for number in range(5):
            with pytest.raises(RedisUnavailable):
                await dispatcher.submit("main", Action("alice", f"win:{number}", 1))
            with pytest.raises(RedisUnavailable):
                await check_durability(client)
        dispatcher.close()
    await client.aclose()

    # The first read, one after the first refusal, and one per interval of refusals.
    intervals = int((time.monotonic() - began_s) / INVALIDATE_EVERY_S)
    assert 2 <= reads_of("redis") - before <= 2 + intervals


async def test_postgres_stays_available_during_rotations_between_two_logins(
    secrets_manager: SecretsManager, logins: Logins, monkeypatch: pytest.MonkeyPatch
) -> None:
    logins.set_password("app_a", "first")
    secret = secrets_manager.create("app_a", "first")
    pool = postgres.make_pool(database_settings(logins, secret), name="test")

    async def ask(_number: int) -> None:
        async with pool.connection() as connection:
            await connection.execute("SELECT 1")

    async with fast_refresh(monkeypatch), pool, light_load(ask, ask, ask) as done:
        turns = (("app_b", "second"), ("app_a", AWKWARD), ("app_b", "fourth"))
        for name, password in turns:
            count = done[0]
            logins.set_password(name, password)
            await asyncio.to_thread(secrets_manager.put, secret, name, password)
            await eventually_async(lambda name=name: logins.users() == {name})
            await eventually_async(lambda count=count: done[0] > count + 50)

    assert done[0] > 150


async def test_a_changed_postgres_password_is_used_after_a_failed_login(
    secrets_manager: SecretsManager, logins: Logins
) -> None:
    logins.set_password("app_a", "first")
    secret = secrets_manager.create("app_a", "first")
    settings = database_settings(logins, secret)
    async with postgres.make_pool(settings, name="test") as pool:
        async with pool.connection() as connection:
            await connection.execute("SELECT 1")

        logins.set_password("app_a", AWKWARD)
        secrets_manager.put(secret, "app_a", AWKWARD)
        logins.end_sessions()

        async with pool.connection() as connection:
            await connection.execute("SELECT 1")
        alone = await postgres.connect(settings, name="test")
        await alone.close()


async def test_a_wrong_database_secret_makes_the_database_unavailable(
    secrets_manager: SecretsManager, logins: Logins
) -> None:
    logins.set_password("app_a", "right")
    secret = secrets_manager.create("app_a", "wrong")

    with pytest.raises(DatabaseUnavailable):
        await postgres.connect(database_settings(logins, secret), name="test")


async def test_new_connections_log_in_while_aws_is_unreachable(
    secrets_manager: SecretsManager,
    redis_user: RedisUser,
    logins: Logins,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    redis_user.change(">first")
    logins.set_password("app_a", "first")
    redis_secret = secrets_manager.create("app", "first")
    settings = redis_settings(redis_user.address, redis_secret)
    database = database_settings(logins, secrets_manager.create("app_a", "first"))
    client = redis_client.make_client(settings, name="test")
    async with fast_refresh(monkeypatch):
        await client.ping()
        await (await postgres.connect(database, name="test")).close()

        secrets_manager.stop()
        await client.connection_pool.disconnect()
        began_s = time.monotonic()
        assert await client.ping()
        await (await postgres.connect(database, name="test")).close()

    await client.aclose()
    assert time.monotonic() - began_s < 8


async def test_without_aws_and_a_cached_value_calls_fail_at_once(
    secrets_manager: SecretsManager, redis_user: RedisUser, logins: Logins
) -> None:
    secret = secrets_manager.create("app", "first")
    secrets_manager.stop()
    client = redis_client.make_client(redis_settings(redis_user.address, secret), name="test")
    began_s = time.monotonic()

    with pytest.raises(RedisUnavailable):
        await check_durability(client)
    with pytest.raises(DatabaseUnavailable):
        await postgres.connect(database_settings(logins, secret), name="test")

    await client.aclose()
    assert time.monotonic() - began_s < 20


async def test_the_reason_is_the_error_code_of_aws(
    secrets_manager: SecretsManager, redis_user: RedisUser
) -> None:
    store = secret_store(redis_settings(redis_user.address, "scoreboard/none"), "redis")
    assert store is not None

    with pytest.raises(SecretsUnavailable, match=r"scoreboard/none.*ResourceNotFoundException"):
        await store.get()


def test_an_unresponsive_aws_does_not_delay_a_process_exit(
    aws_environment: pytest.MonkeyPatch,
) -> None:
    script = (
        "import asyncio\n"
        "from scoreboard.security.credentials import SecretStore\n"
        "from scoreboard.security.secret_backends import AwsBackend\n"
        "async def main():\n"
        "    store = SecretStore('redis', AwsBackend('sb', 120.0))\n"
        "    try: await asyncio.wait_for(store.get(), 1.5)\n"
        "    except TimeoutError: print('timed out', flush=True)\n"
        "asyncio.run(main())\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        aws_environment.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", url)
        with subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "timed out\n"
            began_s = time.monotonic()
            assert process.wait(60) == 0

    assert time.monotonic() - began_s < 6  # the rest of three attempts at a silent server: 7.5 s


async def test_a_file_is_read_again_when_it_was_replaced(
    redis_user: RedisUser, aws_environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As orchestrators do it: the path is a link into a folder, which is exchanged as a whole."""
    redis_user.change(">first", f">{AWKWARD}")
    mount(tmp_path, 1, "first")
    settings = redis_settings(
        redis_user.address, str(tmp_path / "current" / "redis.json"), secrets="file"
    )
    client = redis_client.make_client(settings, name="test")
    async with fast_refresh(aws_environment):
        await client.ping()
        before = redis_user.connections()

        mount(tmp_path, 2, AWKWARD)
        redis_user.change("<first")
        await eventually_async(lambda: not redis_user.connections() & before)
        assert await client.ping()

    await client.aclose()


async def test_a_file_being_written_or_gone_leaves_the_old_login_in_use(
    aws_environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    aws_environment.setattr("scoreboard.security.credentials.backoff_s", lambda *_, **__: 0.0)
    path = tmp_path / "redis.json"
    path.write_text('{"username": "app", "password": "first"}')
    store = secret_store(
        redis_settings("redis://localhost", str(path), secrets="file", secrets_refresh_s=0.0),
        "redis",
    )
    assert store is not None
    first = await store.get()

    path.write_text('{"username": "app", "pass')
    assert await store.get() == first
    path.unlink()
    assert await store.get() == first
    path.write_text('{"username": "app", "password": "second"}')

    assert (await store.get()).password == Secret("second")


async def test_no_password_reaches_logs_reprs_or_errors(
    secrets_manager: SecretsManager,
    redis_user: RedisUser,
    logins: Logins,
    capfd: pytest.CaptureFixture[str],
) -> None:
    handlers = logging.getLogger().handlers[:]
    redis_user.change(">hunter2")
    logins.set_password("app_a", "hunter2")
    secret = secrets_manager.create("app", "hunter2")
    settings = redis_settings(redis_user.address, secret)
    database = database_settings(logins, secrets_manager.create("app_a", "hunter2"))
    wrong = database_settings(logins, secrets_manager.create("app_b", "hunter2"))
    shown: list[object] = [settings, database, conninfo_to_dict(database.database_url.reveal())]
    try:
        setup_logging("test", level="debug", form="console", environment="test")
        client = redis_client.make_client(settings, name="test")
        pool = postgres.make_pool(database, name="test")
        async with pool, pool.connection() as connection:
            await client.ping()
            shown += [client, client.connection_pool, pool, pool.kwargs, connection]
            shown += [secret_store(settings, "redis"), secret_store(database, "database")]
        with pytest.raises(DatabaseUnavailable) as caught:
            await postgres.connect(wrong, name="test")
        shown += [caught.value, caught.value.__cause__]
        await client.aclose()
    finally:
        logging.getLogger().handlers[:] = handlers

    written = "".join(capfd.readouterr()) + "".join(map(repr, shown)) + "".join(map(str, shown))
    assert "secret_changed" in written
    assert "hunter2" not in written


def mount(folder: Path, number: int, password: str) -> None:
    """Replace the folder of the link ``current`` by a new one."""
    version = folder / str(number)
    version.mkdir()
    (version / "redis.json").write_text(json.dumps({"username": "app", "password": password}))
    link = folder / "next"
    link.symlink_to(version)
    link.rename(folder / "current")
