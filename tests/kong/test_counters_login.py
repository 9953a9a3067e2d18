"""The login of Kong's counters changes while Kong runs: on a real Valkey, with an imitated limiter.

The limiter does what ``rate-limiting`` of Kong 3.9 does: it takes the login from the configuration
that was loaded last, logs in on new connections only, and keeps idle connections in a pool.
"""

import asyncio
import json
import os
import random
import string
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
import redis
from redis import asyncio as aioredis
from redis.exceptions import AuthenticationError
from structlog.testing import capture_logs

from cli.gateway.config import PASSWORD_REFERENCE, GatewayOptions, render
from cli.gateway.keys import KeyRow, rows_of
from cli.gateway.sync import KongSync, LoadResult, SyncOptions
from scoreboard.runtime.lifecycle import StopEvent
from scoreboard.runtime.resources import kong_path
from scoreboard.runtime.settings import Secret
from scoreboard.security.credentials import SecretStore
from scoreboard.security.key_set import UrlSource, parse_keys
from scoreboard.security.secret_backends import FileBackend
from tests.kong.admin import FakeAdmin, load_yaml
from tests.support.eventually import eventually_async
from tests.support.servers.rights import make_users
from tests.support.servers.stores import OwnValkey

TEMPLATE = (kong_path() / "kong.yml").read_text()
ROTATIONS = 5
COUNT = """
  local key, life = KEYS[1], ARGV[1]
  local found = redis.call("incr", key)
  if found == 1 then redis.call("expire", key, life) end
  return found - 1
"""


def options_for(port: int) -> GatewayOptions:
    return GatewayOptions(
        issuer="https://issuer.example/",
        audiences=("scoreboard",),
        redis_url=f"redis://kong@127.0.0.1:{port}/0",
        has_secret=True,
    )


def make_password() -> str:
    """Return a password with characters that YAML, JSON, shells and Kong treat specially."""
    odd = "'\"\\{}%#: \t\n|&*!?@`~,[]é\N{SNOWMAN}"
    return "".join(random.choices(string.ascii_letters + odd, k=40)) + "x"


class Store:
    """The secret in a file, as SCOREBOARD_SECRETS=file reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.planted: list[str] = []

    def put(self, password: str, username: str = "kong") -> None:
        self.planted.append(password)
        draft = self.path.with_suffix(".new")
        draft.write_text(json.dumps({"username": username, "password": password}))
        draft.replace(self.path)

    def open(self) -> SecretStore:
        backend = FileBackend(self.path)
        backend.ttl_s = 0.2
        return SecretStore("redis", backend)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "counters.json")


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    return tmp_path / "redis-password"


def make(
    admin: FakeAdmin,
    output: Path,
    secret: SecretStore,
    *,
    port: int = 6379,
    password_file: Path | None = None,
) -> KongSync:
    options = SyncOptions(
        output=output,
        template=TEMPLATE,
        gateway=options_for(port),
        admin_urls=(admin.url,),
        password_file=password_file,
    )
    return KongSync(options, UrlSource(admin.jwks_url), secret=secret)


async def turn(sync: KongSync) -> LoadResult:
    async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
        return await sync.turn(client)


def text_of(path: Path) -> str:
    return path.read_bytes().decode()


def put(path: Path, text: str) -> None:
    path.write_bytes(text.encode())


def mode_of(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mode & 0o777, found.st_gid


def login_in(text: str) -> tuple[str, str]:
    """Return the login of the counters, which is the same in every plugin."""
    document = load_yaml(text)
    plugins = list(document["plugins"])
    for service in document["services"]:
        for route in service["routes"]:
            plugins += route["plugins"]
    logins = {
        (p["config"]["redis"]["username"], p["config"]["redis"]["password"])
        for p in plugins
        if p["name"] == "rate-limiting"
    }
    (login,) = logins
    return login


async def test_kong_is_sent_the_password_and_the_file_contains_the_reference(
    admin: FakeAdmin, output: Path, store: Store, password_file: Path
) -> None:
    password = make_password()
    store.put(password, "kong-2")
    sync = make(admin, output, store.open(), password_file=password_file)
    with capture_logs() as logs:
        assert await turn(sync) is LoadResult.LOADED
        assert await turn(sync) is LoadResult.UNCHANGED
    assert login_in(admin.held) == ("kong-2", password)
    assert login_in(text_of(output)) == ("kong-2", PASSWORD_REFERENCE)
    assert text_of(password_file) == password
    assert mode_of(password_file)[0] == 0o600
    assert password not in repr(logs) + repr(sync.__dict__) + repr(sync.state())
    assert [log["event"] for log in logs].count("counters_secret_sent") == 1


@pytest.mark.parametrize(
    "password",
    ["12345", "null", "~", "yes", "2020-01-01", "{vault", "- x", "a\1b", "\n", "ü\u2028\U0001f600"],
)
async def test_a_password_may_contain_any_character(
    admin: FakeAdmin, output: Path, store: Store, password: str
) -> None:
    store.put(password)
    assert await turn(make(admin, output, store.open())) is LoadResult.LOADED
    assert login_in(admin.held)[1] == password


async def test_a_password_that_is_a_reference_for_kong_is_not_sent(
    admin: FakeAdmin, output: Path, store: Store
) -> None:
    store.put("{vault://env/path}")
    with capture_logs() as logs:
        assert await turn(make(admin, output, store.open())) is LoadResult.NO_SECRET
    assert admin.posted == []
    assert "counters_secret_unusable" in repr(logs)
    assert "{vault://env/path}" not in repr(logs)


@pytest.mark.parametrize("content", [None, "", "{}", '"hunter2hunter2"', '{"password": 5}'])
async def test_without_a_usable_secret_kong_keeps_what_it_has(
    admin: FakeAdmin, output: Path, store: Store, content: str | None
) -> None:
    if content is not None:
        store.path.write_text(content)
    sync = make(admin, output, store.open())
    with capture_logs() as logs:
        assert await turn(sync) is LoadResult.NO_SECRET
    assert (admin.posted, sync.state()[0]) == ([], False)
    assert str(store.path) in repr(logs)
    assert "hunter2" not in repr(logs)
    assert login_in(text_of(output)) == ("kong", PASSWORD_REFERENCE)
    assert sync.state()[1]["secret_version"] is None


async def test_a_secret_that_cannot_be_read_any_more_stays_in_use(
    admin: FakeAdmin, output: Path, store: Store
) -> None:
    store.put("first-password")
    secret = store.open()
    sync = make(admin, output, secret)
    assert await turn(sync) is LoadResult.LOADED
    put(store.path, "{")
    secret.invalidate()
    with capture_logs() as logs:
        assert await turn(sync) is LoadResult.UNCHANGED
    assert "secret_invalid" in repr(logs)
    assert login_in(admin.held)[1] == "first-password"


@pytest.mark.parametrize("password", ["Planted_pass-word.1", None])
async def test_a_rejection_is_logged_without_the_password(
    admin: FakeAdmin, output: Path, store: Store, password: str | None
) -> None:
    is_shown = password is not None
    password = password or make_password()
    store.put(password)
    sync = make(admin, output, store.open())
    admin.answers.append(400)
    with capture_logs() as logs:
        assert await turn(sync) is LoadResult.REFUSED
    (event,) = [log for log in logs if log["event"] == "configuration_rejected"]
    assert ("***" in event["reason"]) is is_shown
    assert ("not shown" in event["reason"]) is not is_shown
    for form in (password, json.dumps(password)[1:-1], repr(password)[1:-1]):
        assert form not in repr(logs)
        assert form not in str(event["reason"])
    assert [path for path in os.listdir(output.parent) if path == output.name] == []  # noqa: PTH208 (in an async test)


async def test_the_password_file_keeps_its_group_and_mode(
    admin: FakeAdmin, output: Path, store: Store, password_file: Path
) -> None:
    put(password_file, "old")
    os.chmod(password_file, 0o640)  # noqa: PTH101 (in an async test)
    if os.geteuid() == 0:
        os.chown(password_file, -1, 12_345)
    before = mode_of(password_file)
    store.put("new-password")
    await turn(make(admin, output, store.open(), password_file=password_file))
    assert text_of(password_file) == "new-password"
    assert mode_of(password_file) == before


async def test_a_password_file_that_cannot_be_written_is_reported(
    admin: FakeAdmin, output: Path, store: Store, tmp_path: Path
) -> None:
    store.put("new-password")
    sync = make(admin, output, store.open(), password_file=tmp_path / "missing" / "file")
    assert await turn(sync) is LoadResult.NO_FILE
    assert login_in(admin.held)[1] == "new-password"


def test_rendering_without_a_password_never_contains_one(jwks: dict[str, object]) -> None:
    rows: tuple[KeyRow, ...] = rows_of(parse_keys(json.dumps(jwks).encode()))
    url = "redis://:hunter2@counters.example"
    options = msgspec.structs.replace(options_for(1), redis_url=url)
    assert "hunter2" not in render(TEMPLATE, rows, options)
    assert "hunter3" in render(TEMPLATE, rows, options, Secret("hunter3"))
    # Without a user in the address, the secret alone is a reason for a reference.
    options = msgspec.structs.replace(options, redis_url="redis://counters.example")
    assert PASSWORD_REFERENCE in render(TEMPLATE, rows, options)


# Rotation under load ------------------------------------------------------------------------------


class Limiter:
    """Counts as Kong does; ``run`` until it is stopped. Every fifth use opens a new connection."""

    def __init__(self, admin: FakeAdmin, port: int, start_password: str) -> None:
        self._admin = admin
        self._port = port
        self._login = ("kong", start_password)
        self._loaded = ""
        self._idle: list[aioredis.Redis] = []
        self.counts: Counter[str] = Counter()
        self.is_stopped = False
        self.used: set[str] = set()

    async def run(self) -> None:
        while not self.is_stopped:
            await self.count()
            await asyncio.sleep(0.002)  # pace: the load

    async def close(self) -> None:
        for client in self._idle:
            await client.aclose()

    async def count(self) -> None:
        if self._admin.held != self._loaded:
            self._loaded = self._admin.held
            self._login = login_in(self._loaded)
        client = self._idle.pop() if self._idle and self.counts["requests"] % 5 else None
        self.counts["requests"] += 1
        is_new = client is None
        if client is None:
            user, password = self._login
            client = aioredis.Redis(
                port=self._port, username=user, password=password, single_connection_client=True
            )
        try:
            await client.eval(COUNT, 1, "ratelimit:a:b:c:0:minute", 60)
        except AuthenticationError:
            self.counts["refused logins"] += 1
            await client.aclose()
            return
        if is_new:
            self.counts["logins"] += 1
            self.used.add(self._login[1])
        self._idle.append(client)
        while len(self._idle) > 10:
            await self._idle.pop(0).aclose()


@pytest.fixture
def counters(own_valkey: OwnValkey) -> Iterator[tuple[redis.Redis, int]]:
    """A Valkey with the users of counters.acl, except that the default user stays for the test."""
    server = own_valkey(settings={"appendonly": "no"})  # as the deployed one
    with redis.Redis.from_url(server.url) as client:
        make_users(client, "first-password", "counters.acl")
        yield client, server.port


async def test_five_changes_under_load_refuse_no_login(
    admin: FakeAdmin,
    output: Path,
    store: Store,
    password_file: Path,
    counters: tuple[redis.Redis, int],
) -> None:
    server, port = counters
    store.put("first-password")
    put(password_file, "first-password")
    secret = store.open()
    sync = make(admin, output, secret, port=port, password_file=password_file)
    limiter = Limiter(admin, port, text_of(password_file))
    stop = StopEvent(5)
    delays_s: list[float] = []

    async def refresh() -> None:
        while not await stop.sleep(0.05):
            await secret.check()

    async with asyncio.timeout(50), asyncio.TaskGroup() as tasks:
        tasks.create_task(limiter.run())
        tasks.create_task(sync.serve(stop))
        tasks.create_task(refresh())
        await eventually_async(lambda: bool(admin.held))
        for _ in range(ROTATIONS):
            old, new = store.planted[-1], make_password()
            server.execute_command("ACL", "SETUSER", "kong", f">{new}")
            started_s = time.monotonic()
            store.put(new)
            await eventually_async(lambda n=new: n in limiter.used)
            delays_s.append(time.monotonic() - started_s)
            await eventually_async(lambda n=new: text_of(password_file) == n)
            server.execute_command("ACL", "SETUSER", "kong", f"<{old}")
            logins = limiter.counts["logins"]
            await eventually_async(lambda n=logins: limiter.counts["logins"] > n + 10)
        limiter.is_stopped = True
        stop.set()
    print(f"{dict(limiter.counts)}; in use after {max(delays_s):.2f} s")  # noqa: T201 (a measurement)
    assert limiter.counts["refused logins"] == 0
    assert len(limiter.used) == ROTATIONS + 1
    assert server.get("ratelimit:a:b:c:0:minute") == str(limiter.counts["requests"]).encode()
    assert [word for word in store.planted if word in text_of(output)] == []

    # The limiter can be refused, and a connection that is logged in survives the change.
    server.execute_command("ACL", "SETUSER", "kong", "resetpass", ">other")
    for _ in range(5):
        await limiter.count()
    await limiter.close()
    assert limiter.counts["refused logins"] > 0
