"""The secret store over a backend of the test's own: one read at a time, old values, refusals."""

import asyncio
import logging
import queue
import time

import pytest

from scoreboard.errors import SecretsUnavailable, SettingInvalid
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.runtime.telemetry import REGISTRY
from scoreboard.security import credentials
from scoreboard.security.credentials import (
    FETCH_WAIT_S,
    INVALIDATE_EVERY_S,
    SecretStore,
    secret_store,
)
from scoreboard.security.secret_backends import Credentials, parse
from tests.support.eventually import eventually_async

FIRST = Credentials("app", Secret("hunter2"), "v1")
SECOND = Credentials("app", Secret("swordfish"), "v2")


class Desk:
    """A backend whose reads wait for an answer of the test."""

    ttl_s = 100.0

    def __init__(self, *answers: Credentials | Exception) -> None:
        self.answers: queue.Queue[Credentials | Exception] = queue.Queue()
        self.reads = 0
        for answer in answers:
            self.answers.put(answer)

    def read(self) -> Credentials:
        self.reads += 1
        answer = self.answers.get(timeout=20)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Clock:
    """A clock that the test turns."""

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


async def test_callers_at_once_share_one_read(clock: Clock) -> None:
    desk = Desk()
    store = SecretStore("redis", desk, clock=clock)

    async with asyncio.TaskGroup() as group:
        callers = [group.create_task(store.get()) for _ in range(20)]
        await eventually_async(lambda: desk.reads == 1)
        desk.answers.put(FIRST)

    assert {caller.result() for caller in callers} == {FIRST}
    assert desk.reads == 1


async def test_a_caller_that_goes_away_leaves_the_read_to_the_others(clock: Clock) -> None:
    desk = Desk()
    store = SecretStore("redis", desk, clock=clock)
    async with asyncio.TaskGroup() as group:
        impatient = group.create_task(store.get())
        patient = group.create_task(store.get())
        await eventually_async(lambda: desk.reads == 1)
        impatient.cancel()
        desk.answers.put(FIRST)

    assert impatient.cancelled()
    assert patient.result() == FIRST
    assert desk.reads == 1


async def test_a_value_is_used_for_its_time_and_then_read_again(clock: Clock) -> None:
    desk = Desk(FIRST, SECOND)
    store = SecretStore("redis", desk, clock=clock)
    await store.get()

    clock.now_s += 0.89 * desk.ttl_s
    assert await store.get() == FIRST
    clock.now_s += 0.22 * desk.ttl_s

    assert await store.get() == SECOND
    assert desk.reads == 2


async def test_the_time_varies_by_a_tenth_so_that_processes_drift_apart(clock: Clock) -> None:
    due: set[bool] = set()
    for _ in range(60):
        desk = Desk(FIRST, FIRST)
        store = SecretStore("redis", desk, clock=clock)
        await store.get()
        clock.now_s += desk.ttl_s
        await store.get()
        due.add(desk.reads == 2)

    assert due == {True, False}


async def test_an_old_value_serves_while_the_store_is_away(clock: Clock) -> None:
    desk = Desk(FIRST, SecretsUnavailable("AWS is away"), SECOND)
    store = SecretStore("redis", desk, clock=clock)
    await store.get()
    failed = refreshes("failed")

    clock.now_s += 2 * desk.ttl_s
    assert await store.get() == FIRST
    assert await store.get() == FIRST, "and nobody waits for it again at once"
    assert (desk.reads, refreshes("failed") - failed) == (2, 1)

    clock.now_s += 30
    assert await store.get() == SECOND


async def test_a_silent_store_holds_up_nobody_who_has_an_old_value(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "STALE_WAIT_S", 0.05)
    desk = Desk(FIRST)
    store = SecretStore("redis", desk, clock=clock)
    await store.get()

    clock.now_s += 2 * desk.ttl_s
    began_s = time.monotonic()
    assert await store.get() == FIRST

    assert time.monotonic() - began_s < FETCH_WAIT_S / 2
    desk.answers.put(SECOND)
    await eventually_async(lambda: _holds(store, SECOND))


async def test_without_any_value_the_failure_is_told_and_soon_tried_again(clock: Clock) -> None:
    desk = Desk(SecretsUnavailable("sb/redis: AWS answered AccessDeniedException"), FIRST)
    store = SecretStore("redis", desk, clock=clock)

    for _ in range(3):
        with pytest.raises(SecretsUnavailable, match="AccessDeniedException"):
            await store.get()
    assert desk.reads == 1

    clock.now_s += 1
    assert await store.get() == FIRST


async def test_a_failure_nobody_thought_of_does_not_leave_callers_waiting(clock: Clock) -> None:
    store = SecretStore("redis", Desk(ZeroDivisionError("hunter2")), clock=clock)

    with pytest.raises(SecretsUnavailable) as caught:
        await store.get()

    assert "ZeroDivisionError" in str(caught.value)
    assert "hunter2" not in str(caught.value)


async def test_refused_credentials_are_read_anew(clock: Clock) -> None:
    desk = Desk(FIRST, SECOND)
    store = SecretStore("redis", desk, clock=clock)
    used = await store.get()

    assert await store.renew(used) == SECOND
    assert await store.renew(used) == SECOND, "another connection was refused with the same ones"
    assert desk.reads == 2


async def test_refusals_ask_the_store_at_most_each_five_seconds(clock: Clock) -> None:
    desk = Desk(FIRST, FIRST, FIRST)
    store = SecretStore("redis", desk, clock=clock)
    used = await store.get()

    for _ in range(10):
        assert await store.renew(used) is None
    assert desk.reads == 2

    clock.now_s += INVALIDATE_EVERY_S
    assert await store.renew(used) is None
    assert desk.reads == 3


async def test_what_was_being_read_before_a_refusal_does_not_count_as_new(clock: Clock) -> None:
    desk = Desk(FIRST)
    store = SecretStore("redis", desk, clock=clock)
    used = await store.get()
    clock.now_s += 2 * desk.ttl_s
    async with asyncio.TaskGroup() as group:
        before = group.create_task(store.get())
        await eventually_async(lambda: desk.reads == 2)
        clock.now_s += 1
        store.invalidate()
        desk.answers.put(used)
        await before

    desk.answers.put(SECOND)
    assert await store.get() == SECOND


class Pool:
    """Counts how often it is told of a change."""

    def __init__(self) -> None:
        self.told = 0

    async def renew(self) -> None:
        self.told += 1


async def test_a_change_is_told_once_and_a_first_value_is_none(clock: Clock) -> None:
    desk = Desk(FIRST, SECOND, SECOND)
    store = SecretStore("redis", desk, clock=clock)
    pool, gone = Pool(), Pool()
    store.on_change(pool.renew)
    store.on_change(gone.renew)
    told_at_first = await _check_until(store, FIRST, pool)
    del gone

    clock.now_s += 2 * desk.ttl_s
    told_of_change = await _check_until(store, SECOND, pool)
    clock.now_s += 2 * desk.ttl_s
    await store.check()
    await eventually_async(lambda: desk.reads == 3)
    await store.check()

    assert (told_at_first, told_of_change, pool.told) == (0, 1, 1)


async def test_a_pool_that_does_not_let_go_holds_up_no_other(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stuck:
        async def renew(self) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr(credentials, "LISTENER_TIMEOUT_S", 0.02)
    desk = Desk(FIRST, SECOND)
    store = SecretStore("redis", desk, clock=clock)
    stuck, pool = Stuck(), Pool()
    store.on_change(stuck.renew)
    store.on_change(pool.renew)
    await store.get()
    await store.renew(FIRST)

    await store.check()

    assert pool.told == 1


async def test_nothing_secret_stands_in_logs_and_reprs(
    clock: Clock, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    store = SecretStore("redis", Desk(FIRST, SecretsUnavailable("away"), SECOND), clock=clock)
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
def test_a_document_that_is_no_login_is_refused_without_showing_it(document: str | bytes) -> None:
    with pytest.raises(SecretsUnavailable, match="sb/redis") as caught:
        parse("sb/redis", document, "v1")

    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_what_else_a_document_holds_is_left_alone() -> None:
    document = '{"username": "a", "password": "p@:/ %", "engine": "postgres", "port": 5432}'

    found = parse("sb/database", document, "v7")

    assert (found.username, found.password.reveal(), found.version) == ("a", "p@:/ %", "v7")


def test_the_address_carries_the_login_where_nothing_else_is_named() -> None:
    settings = Settings(redis_url=Secret("redis://localhost"))

    assert secret_store(settings, "redis") is None
    assert secret_store(settings, "database") is None


@pytest.mark.parametrize(
    ("owner", "variable"),
    [("redis", "SCOREBOARD_REDIS_SECRET"), ("database", "SCOREBOARD_DATABASE_SECRET")],
)
def test_a_store_without_the_name_of_the_secret_is_a_wrong_setting(
    owner: credentials.Owner, variable: str
) -> None:
    settings = Settings(redis_url=Secret("redis://localhost"), secrets="aws")

    with pytest.raises(SettingInvalid, match=variable):
        secret_store(settings, owner)


def test_a_process_has_one_store_per_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "_stores", {})
    settings = Settings(redis_url=Secret("redis://localhost"), secrets="aws", redis_secret="sb/r")

    assert secret_store(settings, "redis") is secret_store(settings, "redis")


async def test_a_variable_may_hold_the_login(monkeypatch: pytest.MonkeyPatch) -> None:
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
    """Check like refresh_secrets until the pool was told of a value; return how often."""
    await store.check()
    await eventually_async(lambda: wanted.version in repr(store))
    await store.check()
    await store.check()
    return pool.told
