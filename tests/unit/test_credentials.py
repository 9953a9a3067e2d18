"""SecretStore with a fake backend: shared reads, old values, refused credentials."""

import asyncio
import logging
import queue
import time

import pytest

from scoreboard.errors import SecretInvalid, SecretsUnavailable, SettingInvalid
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.runtime.telemetry import REGISTRY
from scoreboard.security import credentials
from scoreboard.security.credentials import (
    FETCH_WAIT_S,
    INVALIDATE_EVERY_S,
    LOG_EVERY_S,
    SecretStore,
    secret_store,
)
from scoreboard.security.secret_backends import Credentials, parse
from tests.support.eventually import eventually_async

FIRST = Credentials("app", Secret("hunter2"), "v1")
SECOND = Credentials("app", Secret("swordfish"), "v2")


class FakeBackend:
    """A backend whose reads wait for an answer from the test."""

    ttl_s = 100.0

    def __init__(self, *answers: Credentials | Exception) -> None:
        self.answers: queue.Queue[Credentials | Exception] = queue.Queue()
        self.reads = 0
        for answer in answers:
            self.answers.put(answer)

    def read(self) -> Credentials:
        self.reads += 1
        answer = self.answers.get(timeout=60)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def refreshes(outcome: str) -> float:
    labels = {"owner": "redis", "outcome": outcome}
    return REGISTRY.get_sample_value("scoreboard_secret_refresh_total", labels) or 0.0


async def test_concurrent_callers_share_one_read(clock: Clock) -> None:
    backend = FakeBackend()
    store = SecretStore("redis", backend, clock=clock)

    async with asyncio.TaskGroup() as group:
        callers = [group.create_task(store.get()) for _ in range(20)]
        await eventually_async(lambda: backend.reads == 1)
        backend.answers.put(FIRST)

    assert {caller.result() for caller in callers} == {FIRST}
    assert backend.reads == 1


async def test_a_cancelled_caller_does_not_cancel_the_read(clock: Clock) -> None:
    backend = FakeBackend()
    store = SecretStore("redis", backend, clock=clock)
    async with asyncio.TaskGroup() as group:
        cancelled = group.create_task(store.get())
        waiting = group.create_task(store.get())
        await eventually_async(lambda: backend.reads == 1)
        cancelled.cancel()
        backend.answers.put(FIRST)

    assert cancelled.cancelled()
    assert waiting.result() == FIRST
    assert backend.reads == 1


async def test_a_value_is_used_until_its_ttl_ends_and_then_read_again(clock: Clock) -> None:
    backend = FakeBackend(FIRST, SECOND)
    store = SecretStore("redis", backend, clock=clock)
    await store.get()

    clock.now_s += 0.89 * backend.ttl_s
    assert await store.get() == FIRST
    clock.now_s += 0.22 * backend.ttl_s

    assert await store.get() == SECOND
    assert backend.reads == 2


async def test_the_ttl_is_jittered_by_a_tenth(clock: Clock) -> None:
    due: set[bool] = set()
    for _ in range(60):
        backend = FakeBackend(FIRST, FIRST)
        store = SecretStore("redis", backend, clock=clock)
        await store.get()
        clock.now_s += backend.ttl_s
        await store.get()
        due.add(backend.reads == 2)

    assert due == {True, False}


async def test_an_old_value_is_used_while_the_store_is_unavailable(clock: Clock) -> None:
    backend = FakeBackend(FIRST, SecretsUnavailable("AWS is away"), SECOND)
    store = SecretStore("redis", backend, clock=clock)
    await store.get()
    failed = refreshes("failed")

    clock.now_s += 2 * backend.ttl_s
    assert await store.get() == FIRST
    assert await store.get() == FIRST, "the read is not repeated at once"
    assert (backend.reads, refreshes("failed") - failed) == (2, 1)

    clock.now_s += 30
    assert await store.get() == SECOND


async def test_a_store_that_does_not_answer_does_not_block_a_caller_with_an_old_value(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "STALE_WAIT_S", 0.05)
    backend = FakeBackend(FIRST)
    store = SecretStore("redis", backend, clock=clock)
    await store.get()

    clock.now_s += 2 * backend.ttl_s
    began_s = time.monotonic()
    assert await store.get() == FIRST

    assert time.monotonic() - began_s < FETCH_WAIT_S / 2
    backend.answers.put(SECOND)
    await eventually_async(lambda: _holds(store, SECOND))


async def test_without_a_value_the_failure_is_raised_and_the_read_retried_after_a_second(
    clock: Clock,
) -> None:
    backend = FakeBackend(SecretsUnavailable("sb/redis: AWS answered AccessDeniedException"), FIRST)
    store = SecretStore("redis", backend, clock=clock)

    for _ in range(3):
        with pytest.raises(SecretsUnavailable, match="AccessDeniedException"):
            await store.get()
    assert backend.reads == 1

    clock.now_s += 1
    assert await store.get() == FIRST


async def test_an_unexpected_error_raises_secrets_unavailable_without_its_text(
    clock: Clock,
) -> None:
    store = SecretStore("redis", FakeBackend(ZeroDivisionError("hunter2")), clock=clock)

    with pytest.raises(SecretsUnavailable) as caught:
        await store.get()

    assert "ZeroDivisionError" in str(caught.value)
    assert "hunter2" not in str(caught.value)


async def test_refused_credentials_are_read_again(clock: Clock) -> None:
    backend = FakeBackend(FIRST, SECOND)
    store = SecretStore("redis", backend, clock=clock)
    used = await store.get()

    assert await store.renew(used) == SECOND
    assert await store.renew(used) == SECOND, "another connection was refused with the same ones"
    assert backend.reads == 2


async def test_refusals_read_the_store_at_most_every_five_seconds(clock: Clock) -> None:
    backend = FakeBackend(FIRST, FIRST, FIRST)
    store = SecretStore("redis", backend, clock=clock)
    used = await store.get()

    for _ in range(10):
        assert await store.renew(used) is None
    assert backend.reads == 2

    clock.now_s += INVALIDATE_EVERY_S
    assert await store.renew(used) is None
    assert backend.reads == 3


async def test_a_read_that_began_before_a_refusal_does_not_count_as_new(clock: Clock) -> None:
    backend = FakeBackend(FIRST)
    store = SecretStore("redis", backend, clock=clock)
    used = await store.get()
    clock.now_s += 2 * backend.ttl_s
    async with asyncio.TaskGroup() as group:
        before = group.create_task(store.get())
        await eventually_async(lambda: backend.reads == 2)
        clock.now_s += 1
        store.invalidate()
        backend.answers.put(used)
        await before

    backend.answers.put(SECOND)
    assert await store.get() == SECOND


async def test_a_failure_that_continues_is_logged_once_per_cause_and_its_end(
    clock: Clock, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    away, wrong = SecretsUnavailable("sb/redis: away"), SecretInvalid("sb/redis: not JSON")
    backend = FakeBackend(FIRST, *[away] * 5, *[wrong] * 5, FIRST)
    store = SecretStore("redis", backend, clock=clock)
    await store.get()
    failed, invalid = refreshes("failed"), refreshes("invalid")

    clock.now_s += 2 * backend.ttl_s
    for _ in range(11):
        assert await store.get() == FIRST
        clock.now_s += 30

    written = caplog.text + "".join(capsys.readouterr())
    assert (refreshes("failed") - failed, refreshes("invalid") - invalid) == (5, 5)
    assert written.count("secret_refresh_failed") == 1
    assert written.count("secret_invalid") == 1
    assert written.count("secret_refresh_recovered") == 1


async def test_a_failure_that_continues_for_long_is_logged_again(
    clock: Clock, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    away = SecretsUnavailable("sb/redis: away")
    store = SecretStore("redis", FakeBackend(FIRST, away, away), clock=clock)
    await store.get()

    for _ in range(2):
        clock.now_s += LOG_EVERY_S
        await store.get()

    written = caplog.text + "".join(capsys.readouterr())
    assert written.count("secret_refresh_failed") == 2


async def test_a_wrong_secret_at_the_start_is_told_as_such(clock: Clock) -> None:
    store = SecretStore("redis", FakeBackend(SecretInvalid("sb/redis: not JSON")), clock=clock)

    with pytest.raises(SecretInvalid, match="sb/redis: not JSON"):
        await store.get()


async def test_a_login_is_outdated_once_the_secret_has_changed(clock: Clock) -> None:
    backend = FakeBackend(FIRST, SECOND)
    store = SecretStore("redis", backend, clock=clock)
    used = await store.get()
    was_outdated = store.is_outdated(used)
    clock.now_s += 2 * backend.ttl_s
    await store.get()

    assert (was_outdated, store.is_outdated(used)) == (False, True)


class Pool:
    """A pool that counts its renewals."""

    def __init__(self) -> None:
        self.renewals = 0

    async def renew(self) -> None:
        self.renewals += 1


async def test_pools_are_renewed_once_per_change_and_not_for_the_first_value(clock: Clock) -> None:
    backend = FakeBackend(FIRST, SECOND, SECOND)
    store = SecretStore("redis", backend, clock=clock)
    pool, gone = Pool(), Pool()
    store.on_change(pool.renew)
    store.on_change(gone.renew)
    renewed_at_first = await _check_until(store, FIRST, pool)
    del gone

    clock.now_s += 2 * backend.ttl_s
    renewed_on_change = await _check_until(store, SECOND, pool)
    clock.now_s += 2 * backend.ttl_s
    await store.check()
    await eventually_async(lambda: backend.reads == 3)
    await store.check()

    assert (renewed_at_first, renewed_on_change, pool.renewals) == (0, 1, 1)


async def test_a_pool_that_hangs_does_not_block_other_pools(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stuck:
        async def renew(self) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr(credentials, "LISTENER_TIMEOUT_S", 0.02)
    backend = FakeBackend(FIRST, SECOND)
    store = SecretStore("redis", backend, clock=clock)
    stuck, pool = Stuck(), Pool()
    store.on_change(stuck.renew)
    store.on_change(pool.renew)
    await store.get()
    await store.renew(FIRST)

    await store.check()

    assert pool.renewals == 1


async def test_logs_and_reprs_contain_no_secret(
    clock: Clock, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    store = SecretStore(
        "redis", FakeBackend(FIRST, SecretsUnavailable("away"), SECOND), clock=clock
    )
    await store.get()
    clock.now_s += 1000
    await store.get()
    clock.now_s += 1000
    await store.get()

    logged = caplog.text + "".join(capsys.readouterr())
    written = logged + repr(store) + repr(FIRST) + str(SECOND)

    assert "secret_refresh_failed" in logged
    assert "v2" in logged
    assert "hunter2" not in written
    assert "swordfish" not in written


@pytest.mark.parametrize(
    "document",
    [
        "",
        "hunter2",
        '"hunter2"',
        "[]",
        '{"username": "app"}',
        '{"username": "app", "password": ""}',
        '{"username": "app", "password": ["hunter2"]}',
        b'{"password": "hunter2\xff"}',
    ],
)
def test_an_invalid_secret_is_refused_without_its_text(document: str | bytes) -> None:
    with pytest.raises(SecretsUnavailable, match="sb/redis") as caught:
        parse("sb/redis", document, "v1")

    assert "hunter2" not in str(caught.value)
    assert caught.value.__context__ is None


def test_other_fields_of_a_secret_are_ignored() -> None:
    document = '{"username": "a", "password": "p@:/ %", "engine": "postgres", "port": 5432}'

    found = parse("sb/database", document, "v7")

    assert (found.username, found.password.reveal(), found.version) == ("a", "p@:/ %", "v7")


def test_there_is_no_secret_store_unless_one_is_configured() -> None:
    settings = Settings(redis_url=Secret("redis://localhost"))

    assert secret_store(settings, "redis") is None
    assert secret_store(settings, "database") is None


@pytest.mark.parametrize(
    ("owner", "variable"),
    [("redis", "SCOREBOARD_REDIS_SECRET"), ("database", "SCOREBOARD_DATABASE_SECRET")],
)
def test_a_secret_store_requires_the_name_of_the_secret(
    owner: credentials.Owner, variable: str
) -> None:
    settings = Settings(redis_url=Secret("redis://localhost"), secrets="aws")

    with pytest.raises(SettingInvalid, match=variable):
        secret_store(settings, owner)


def test_a_process_has_one_store_per_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "_stores", {})
    settings = Settings(redis_url=Secret("redis://localhost"), secrets="aws", redis_secret="sb/r")

    assert secret_store(settings, "redis") is secret_store(settings, "redis")


async def test_a_variable_can_contain_the_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "_stores", {})
    monkeypatch.setenv("REDIS_LOGIN", '{"username": "app", "password": "hunter2"}')
    settings = Settings(redis_url=Secret("redis://localhost"), redis_secret="REDIS_LOGIN")
    store = secret_store(settings, "redis")
    assert store is not None

    found = await store.get()

    assert (found.username, found.password) == ("app", Secret("hunter2"))


async def _holds(store: SecretStore, wanted: Credentials) -> bool:
    return await store.get() == wanted


async def _check_until(store: SecretStore, wanted: Credentials, pool: Pool) -> int:
    """Call `check` as refresh_secrets does until the value is read; return the pool's renewals."""
    await store.check()
    await eventually_async(lambda: wanted.version in repr(store))
    await store.check()
    await store.check()
    return pool.renewals
