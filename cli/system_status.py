"""Examines the whole system for `scoreboard status`: the stores, and the services' metrics ports.

Invariants: all parts are asked at once, each with a time limit, so that parts that do not answer
neither stop nor delay the others; responses are bounded; no result contains a secret.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from typing import Final, TypeVar

import httpx
import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cli.failures import explain
from cli.target import open_database
from scoreboard.errors import SchemaMismatch, ScoreboardError, Unavailable
from scoreboard.health import checks
from scoreboard.health.checks import Check, down, unknown
from scoreboard.health.readings import describe_backlogs
from scoreboard.health.services import (
    ADMIN,
    BUILD,
    WORKER_UP,
    Samples,
    builds,
    fetch,
    parse_samples,
    refusals_of,
    service_urls,
)
from scoreboard.ledger.backups import select_last_backup
from scoreboard.ledger.boards import select_boards
from scoreboard.ledger.dead_letters import count_dead_letters
from scoreboard.ledger.migrations import known, require_schema
from scoreboard.model import Board, Layout, Partition
from scoreboard.runtime.settings import Settings
from scoreboard.store.client import make_client
from scoreboard.store.durability import Requirements, check_durability
from scoreboard.store.partitions import Backlog, PartitionState
from scoreboard.store.store import Store

LIMIT_S: Final = 5.0
"""Longest time for each part."""

REQUEST_S: Final = 2.0
DOWN: Final = "down"
PROGRAM: Final = "program"
REFUSALS: Final = "refusals"
OTHERS: Final = "other boards"
"""The check of boards that are not in SCOREBOARD_BOARDS."""

CLOSED_MAX: Final = 20
"""Maximum such boards that are shown one by one."""

SERVICES: Final = ("api", "streamer", "flusher")
"""The services that every system has; one for administrators is shown if it is named."""

_ALERTS: Final = {
    "api": "ApiDown",
    ADMIN: "AdminDown",
    "streamer": "StreamerDown",
    "flusher": "FlusherDown",
}

_NOT_READY: Final = {
    "api": "ApiDown",
    ADMIN: "AdminDown",
    "streamer": "BoardStale",
    "flusher": "FlusherStuck",
}
"""The sections about services that run and are not ready."""

_Facts = TypeVar("_Facts")


class Refusals(Struct, frozen=True):
    """Refusals of one kind: in each second of the interval, and since the services started."""

    per_s: float
    total: int


class SystemStatus(Struct, frozen=True):
    """The checks by name, and refusals by source and reason; None if no service told them.

    ``effects`` names the cause of each check that ends with it and needs no action of its own.
    """

    checks: dict[str, Check]
    refusals: dict[str, Refusals] | None
    effects: dict[str, str] = {}

    @property
    def is_down(self) -> bool:
        """Return whether a server or service does not answer."""
        return any(one.state == DOWN for one in self.checks.values())

    @property
    def needs_action(self) -> bool:
        """Return whether something has to be done."""
        return any(is_in_need(one) for one in self.checks.values())


def is_in_need(check: Check) -> bool:
    """Return whether something has to be done about a part."""
    return bool(check.advice) or check.state == DOWN


class _RedisFacts(Struct):
    """What Redis says; ``boards`` are the states and backlogs of partitions by number."""

    checks: dict[str, Check]
    boards: dict[str, tuple[dict[int, PartitionState], dict[int, Backlog]]] = {}
    failures: dict[str, str] = {}
    """Why a board could not be read."""


class _DatabaseFacts(Struct):
    """What PostgreSQL says; ``boards`` is None if they could not be read."""

    checks: dict[str, Check]
    boards: dict[str, Board] | None = None


class _ServiceFacts(Struct):
    """What one process of a service says; ``counters`` are two readings of its refusals."""

    service: str
    url: str
    check: Check
    checks: dict[str, Check] = {}
    counters: tuple[dict[str, float], dict[str, float]] | None = None


class _Body(Struct):
    """The fields of /health/ready that are used."""

    status: str = ""
    checks: dict[str, Check] = {}


async def examine(settings: Settings, *, interval_s: float) -> SystemStatus:
    """Examine all parts of a system; refusals are counted for ``interval_s``.

    A part that does not answer is one check; no error is raised for it.
    """
    (redis, database), services = await asyncio.gather(
        asyncio.gather(
            _limited(_ask_redis(settings), _redis_down),
            _limited(_ask_database(settings), _database_down),
        ),
        asyncio.gather(
            *[
                _limited(
                    _ask_service(service, url, interval_s),
                    partial(_service_down, service, url),
                    limit_s=LIMIT_S + interval_s,
                )
                for service, url in service_urls(settings)
            ]
        ),
    )
    found = {PROGRAM: Check(version("scoreboard")), **redis.checks, **database.checks}
    for name in settings.boards:
        found |= _describe_board(name, redis, database)
    if database.boards and DOWN not in {one.state for one in found.values()}:
        others = [one for name, one in database.boards.items() if name not in settings.boards]
        found |= await _limited(
            _ask_others(settings, others), lambda reason: {OTHERS: unknown(reason)}
        )
    _add_services(found, services, settings)
    effects = _find_effects(found, settings)
    for name, cause in effects.items():
        reasons = (found[name].detail, f"because of {cause}: {found[cause].state}")
        found[name] = replace(found[name], detail="; ".join(filter(None, reasons)), advice="")
    refusals = _count_refusals(services, interval_s)
    found[REFUSALS] = _describe_refusals(refusals, interval_s)
    return SystemStatus(found, refusals, effects)


# The parts ----------------------------------------------------------------------------------------


async def _limited(
    asked: Awaitable[_Facts], failed: Callable[[str], _Facts], *, limit_s: float = LIMIT_S
) -> _Facts:
    """Await what a part says; return ``failed`` with the reason if it does not answer."""
    try:
        async with asyncio.timeout(limit_s):
            return await asked
    except TimeoutError:
        return failed("no answer in time")
    except Exception as error:  # noqa: BLE001 (any error is the state of the part)
        return failed(explain(error)[0])


async def _ask_redis(settings: Settings) -> _RedisFacts:
    async with make_client(settings, name="status", connections=4) as client:
        store = Store(client)
        durability = await check_durability(client, Requirements.of(settings))
        facts = _RedisFacts(
            {
                checks.REDIS: checks.describe_redis(durability),
                checks.DURABILITY: checks.describe_durability(
                    durability, is_unsafe_allowed=settings.unsafe_redis
                ),
            }
        )
        for board in settings.boards:
            try:
                states = await store.states(board)
                backlogs = {
                    number: await store.backlog(Partition(board, number)) for number in states
                }
            except ScoreboardError as error:
                facts.failures[board] = explain(error)[0]
            else:
                facts.boards[board] = states, backlogs
    return facts


def _redis_down(reason: str) -> _RedisFacts:
    return _RedisFacts(
        {
            checks.REDIS: down(reason, alert="RedisDown"),
            checks.DURABILITY: unknown("Redis does not answer"),
        }
    )


async def _ask_database(settings: Settings) -> _DatabaseFacts:
    async with open_database(settings) as connection:
        version_text = connection.info.parameter_status("server_version") or "of an unknown version"
        facts = _DatabaseFacts({checks.DATABASE: Check("up", f"PostgreSQL {version_text}")})
        try:
            newest = await require_schema(connection)
        except SchemaMismatch as error:
            facts.checks[checks.SCHEMA] = Check("outdated", error.detail, "scoreboard db migrate")
            return facts
        state = "current" if newest == known()[-1] else "newer"
        facts.checks[checks.SCHEMA] = Check(state, newest)
        facts.boards = {board.name: board for board in await select_boards(connection)}
        counts = await count_dead_letters(connection)
        facts.checks[checks.DEAD_LETTERS] = checks.describe_dead_letters(counts)
        backup = await select_last_backup(connection)
        facts.checks[checks.BACKUP] = checks.describe_backup(
            backup.age_s if backup else None, is_required=settings.environment != "development"
        )
    return facts


def _database_down(reason: str) -> _DatabaseFacts:
    return _DatabaseFacts({checks.DATABASE: down(reason, alert="PostgresDown")})


async def _ask_service(service: str, url: str, interval_s: float) -> _ServiceFacts:
    try:
        return await _read_service(service, url, interval_s)
    except httpx.TimeoutException:
        reason = "no answer in time"
    except httpx.ConnectError:
        reason = "nothing listens there, or the host is unreachable"
    except httpx.TransportError as error:
        reason = f"the connection failed: {type(error).__name__}"
    except (msgspec.MsgspecError, ValueError):  # of the parsers of JSON and of metrics
        reason = "the response is not that of this service"
    except Unavailable as error:
        reason = error.detail
    return _service_down(service, url, reason)


async def _read_service(service: str, url: str, interval_s: float) -> _ServiceFacts:
    """Raise httpx.TransportError, msgspec.MsgspecError, ValueError, Unavailable."""
    async with httpx.AsyncClient(timeout=REQUEST_S, trust_env=False) as client:
        status, text = await fetch(client, f"{url}/health/ready")
        body = _Body("ready")
        if status != HTTPStatus.NOT_FOUND:  # an older version's port of several workers
            body = msgspec.json.decode(text, type=_Body)
        before = _samples(await fetch(client, f"{url}/metrics"))
        counters = None
        if before:
            await asyncio.sleep(interval_s)
            after = _samples(await fetch(client, f"{url}/metrics"))
            counters = refusals_of(before), refusals_of(after)
    versions = {labels["service"]: labels["version"] for labels in builds(before)}
    running = versions.get("api" if service == ADMIN else service)
    if running is None:
        found = ", ".join(sorted(versions))
        raise Unavailable(f"it is the {found}" if found else f"it has no metric {BUILD}")
    detail = f"version {running}"
    advice = ""
    silent = [
        dict(key.labels).get("worker", "") for key, is_up in before.items()
        if key.name == WORKER_UP and not is_up
    ]  # fmt: skip
    if silent:
        body.status = "not ready"
        detail += f", worker {', '.join(sorted(silent))} does not answer"
        advice = f"see {checks.runbook('WorkerDown')}"
    elif running != version("scoreboard"):
        advice = "use one version everywhere: docs/how-to/upgrade.md"
    elif body.status != "ready":
        detail += f", see its log and {url}/health/ready"
        advice = _see_not_ready(service)
    return _ServiceFacts(service, url, Check(body.status, detail, advice), body.checks, counters)


def _see_not_ready(service: str) -> str:
    """Return the advice for a service that does not say why it is not ready."""
    return f"see {checks.runbook(_NOT_READY[service])}"


def _service_down(service: str, url: str, reason: str) -> _ServiceFacts:
    check = down(f"{url}: {reason}", alert=_ALERTS[service])
    return _ServiceFacts(service, url, check)


def _samples(response: tuple[int, bytes]) -> Samples:
    """Return the samples that are used here; none if the port serves no metrics."""
    status, text = response
    return parse_samples(text) if status == HTTPStatus.OK else {}


# The whole ----------------------------------------------------------------------------------------


def _describe_board(name: str, redis: _RedisFacts, database: _DatabaseFacts) -> dict[str, Check]:
    board, backlog = checks.board_name(name), checks.backlog_name(name)
    if database.boards is not None and name not in database.boards:
        return {board: Check("missing", "", f"scoreboard board create {name}")}
    if name not in redis.boards:
        reason = redis.failures.get(name, "Redis does not answer")
        advice = f"see {checks.runbook('FlusherStuck')}" if name in redis.failures else ""
        return {board: unknown(reason, advice=advice), backlog: unknown(reason)}
    found, backlogs = redis.boards[name]
    layout = database.boards[name].layout if database.boards else None
    held = layout or next((one.layout for one in found.values() if one.layout), None) or Layout()
    states = [found.get(number, PartitionState()) for number in range(held.partitions)]
    return {
        board: checks.describe_board(name, layout, states),
        backlog: describe_backlogs(list(backlogs.values())),
    }


async def _ask_others(settings: Settings, boards: Sequence[Board]) -> dict[str, Check]:
    """Return the boards that accept no actions, and how many do."""
    partitions = [
        Partition(board.name, number)
        for board in boards
        for number in range(board.layout.partitions)
    ]
    states: dict[str, list[PartitionState]] = {board.name: [] for board in boards}
    async with make_client(settings, name="status") as client:
        async for partition, found in Store(client).survey_all(partitions):
            state = PartitionState() if isinstance(found, ScoreboardError) else found.state
            states[partition.board].append(state)
    described = {
        board.name: checks.describe_board(board.name, board.layout, states[board.name])
        for board in boards
    }
    closed = [name for name, check in described.items() if check.advice]
    shown = {checks.board_name(name): described[name] for name in closed[:CLOSED_MAX]}
    if closed:
        detail = f"{len(closed)} of {len(boards)} accept no actions"
        return {**shown, OTHERS: Check("closed", detail, "see the boards above")}
    return {OTHERS: Check("open", f"{len(boards)}")} if boards else {}


def _add_services(
    found: dict[str, Check], services: Sequence[_ServiceFacts], settings: Settings
) -> None:
    """Add the services and their checks.

    A check that was made here already is added only if it is worse as a service sees it.
    """
    own = set(found)
    counts = Counter(one.service for one in services)
    for service in SERVICES:
        if not counts[service]:
            found[service] = unknown("no metrics address: SCOREBOARD_SERVICES")
    for one in services:
        name = one.service if counts[one.service] == 1 else f"{one.service} {one.url}"
        found[name] = one.check
    for one in services:
        where = one.service if counts[one.service] == 1 else f"{one.service} {one.url}"
        for name, check in one.checks.items():
            if name not in found:
                found[name] = check
            elif name not in own or (check.advice and not found[name].advice):
                found[f"{name} ({where})"] = check
    for board in settings.boards:
        found.setdefault(
            checks.drift_name(board),
            unknown("the flusher does not tell", advice=f"scoreboard verify --board {board}"),
        )


def _find_effects(found: Mapping[str, Check], settings: Settings) -> dict[str, str]:
    """Return the checks that are consequences of another one, with the name of that one.

    A cause is never an effect, so the checks that remain are those to act on.
    """
    stores = (checks.REDIS, checks.DURABILITY, checks.DATABASE, checks.SCHEMA)
    boards = [checks.board_name(board) for board in settings.boards]
    api = (*stores[:2], *boards)
    causes = {"api": api, ADMIN: api, "streamer": (checks.REDIS,), "flusher": stores}
    for board in settings.boards:
        state = checks.board_name(board)
        causes[checks.live_name(board)] = (checks.REDIS, state)
        causes[checks.drift_name(board)] = (*stores, state, "flusher")
        causes[checks.backlog_name(board)] = (*stores, "flusher")
    causes[checks.CATALOGUE] = stores
    effects: dict[str, str] = {}
    for name, check in found.items():
        first_word = name.partition(" ")[0]
        has_own_cause = first_word in _ALERTS and (
            check.state == DOWN or check.advice != _see_not_ready(first_word)
        )
        if not is_in_need(check) or has_own_cause or check.state == "drifted":
            continue
        known = causes.get(name) or causes.get(first_word, ())
        cause = next((one for one in known if one in found and is_in_need(found[one])), "")
        if cause:
            effects[name] = effects.get(cause, cause)
    return effects


def _count_refusals(
    services: Sequence[_ServiceFacts], interval_s: float
) -> dict[str, Refusals] | None:
    """Return the refusals of all services by source and reason."""
    read = [one.counters for one in services if one.counters is not None]
    if not read:
        return None
    rates: dict[str, float] = defaultdict(float)
    totals: dict[str, float] = defaultdict(float)
    for before, after in read:
        for name, total in after.items():
            totals[name] += total
            rates[name] += max(0.0, total - before.get(name, 0.0)) / interval_s
    return {
        name: Refusals(round(rates[name], 3), int(total))
        for name, total in sorted(totals.items())
        if total
    }


def _describe_refusals(refusals: dict[str, Refusals] | None, interval_s: float) -> Check:
    if refusals is None:
        return unknown("no service tells its metrics")
    now = {name: one for name, one in refusals.items() if one.per_s}
    if now:
        words = ", ".join(f"{name} {one.per_s:g}/s" for name, one in now.items())
        return Check("some", words)
    total = sum(one.total for one in refusals.values())
    before = f", {total} since the services started" if total else ""
    return Check("none", f"in {checks.duration(interval_s)}{before}")
