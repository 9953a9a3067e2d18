"""Liveness and readiness of the api.

Liveness checks no dependency. Readiness requires Redis, its durability and a loaded board, and
reports the other dependencies. The api stays ready without PostgreSQL, because updates and reads do
not need it, and while a board is fenced, because its reads succeed. It is not ready while it
drains, so that no new requests arrive.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import redis.asyncio as aioredis
from litestar import get
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from psycopg_pool import AsyncConnectionPool

from api.documents.responses import UPDATE_ONLY, problems
from api.documents.schemas import Alive, Check, Readiness
from scoreboard.errors import MethodNotAllowed, ScoreboardError, Uninitialised
from scoreboard.http import probes
from scoreboard.http.request import Request
from scoreboard.http.response import HttpResponse
from scoreboard.ledger.pool import Connection, translate_errors
from scoreboard.model import Partition
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import REDIS_DURABLE, get_logger
from scoreboard.security.tokens import Verifier
from scoreboard.store.boards import Boards
from scoreboard.store.catalogue import Catalogue
from scoreboard.store.durability import check_durability, replicas_needed

LIVE_PATH: Final = "/health/live"
READY_PATH: Final = "/health/ready"

REDIS_TTL_S: Final = 1.0
BOARDS_TTL_S: Final = 1.0
DURABILITY_TTL_S: Final = 10.0
DATABASE_TTL_S: Final = 5.0
TIMEOUT_S: Final = 1.0

UP: Final = Check("up")
_OPEN: Final = "open"
_NOT_LOADED: Final = "not loaded"
_log = get_logger(__name__)


class _CachedCheck:
    """One check, run at most once in ``ttl_s``, and not concurrently."""

    def __init__(self, check: Callable[[], Awaitable[Check]], ttl_s: float) -> None:
        self._check = check
        self._ttl_s = ttl_s
        self._lock = asyncio.Lock()
        self._expires_at_s = 0.0
        self._last = Check("unknown")

    async def get(self) -> Check:
        async with self._lock:
            if time.monotonic() >= self._expires_at_s:
                try:
                    async with asyncio.timeout(TIMEOUT_S):
                        self._last = await self._check()
                except TimeoutError:
                    self._last = Check("down", "no answer in time")
                except ScoreboardError as error:
                    self._last = Check("down", error.title)
                self._expires_at_s = time.monotonic() + self._ttl_s
            return self._last


class Health:
    """The health of this process and its dependencies."""

    def __init__(
        self,
        settings: Settings,
        *,
        client: aioredis.Redis,
        store: Boards,
        verifier: Verifier,
        catalogue: Catalogue,
        pool: AsyncConnectionPool[Connection] | None,
    ) -> None:
        self._client = client
        self._store = store
        self._boards = settings.boards
        self._is_unsafe_allowed = settings.unsafe_redis
        self._replicas = replicas_needed(settings)
        self._verifier = verifier
        self._catalogue = catalogue
        self._pool = pool
        self._ping = _CachedCheck(self._check_redis, REDIS_TTL_S)
        self._board_states = _CachedCheck(self._check_boards, BOARDS_TTL_S)
        self._durability = _CachedCheck(self._check_durability, DURABILITY_TTL_S)
        self._database = _CachedCheck(self._check_database, DATABASE_TTL_S)
        self.draining = asyncio.Event()
        """Set when the process is about to stop."""

    def drain(self) -> None:
        """Become not ready: the process is about to stop."""
        self.draining.set()

    async def ready(self) -> Readiness:
        """Return the state of each dependency, and whether this process should get requests."""
        if self.draining.is_set():
            return Readiness("draining", {})  # without checks, so that traffic moves away soon
        redis, database = await asyncio.gather(self._ping.get(), self._database.get())
        durability = boards = Check("unknown")
        if redis.state == "up":
            durability, boards = await asyncio.gather(
                self._durability.get(), self._board_states.get()
            )
        checks = {
            "redis": redis,
            "durability": durability,
            "boards": boards,
            "keys": UP if self._verifier.is_ready else Check("down", "no key set was read yet"),
            "catalogue": UP if self._catalogue.is_loaded else Check("down", "not read yet"),
            "database": database,
        }
        is_able = (
            redis.state == "up"
            and durability.state in {"safe", "vouched"}
            and boards.state in {"up", "partly"}
            and self._catalogue.is_loaded
        )
        return Readiness("ready" if is_able else "not ready", checks)

    async def answer_live(self, _: Request) -> HttpResponse:
        """Answer the liveness probe."""
        return probes.liveness(Alive().status)

    async def answer_ready(self, _: Request) -> HttpResponse:
        """Answer the readiness probe."""
        found = await self.ready()
        facts = {"status": found.status, "checks": found.checks}
        return probes.readiness(is_ready=found.status == "ready", facts=facts)

    async def _check_redis(self) -> Check:
        await self._store.now_s()
        return UP

    async def _check_boards(self) -> Check:
        states = {name: await self._state_of(name) for name in self._boards}
        wrong = "; ".join(f"{name}: {state}" for name, state in states.items() if state != _OPEN)
        if not wrong:
            return UP
        is_any_loaded = any(state != _NOT_LOADED for state in states.values())
        return Check("partly" if is_any_loaded else "down", wrong)

    async def _state_of(self, name: str) -> str:
        try:
            board = await self._store.board(name)
        except Uninitialised:
            return _NOT_LOADED
        numbers = range(board.layout.partitions)
        partitions = [await self._store.state(Partition(name, number)) for number in numbers]
        if not all(partition.epoch for partition in partitions):
            return _NOT_LOADED
        return _OPEN if all(partition.is_open for partition in partitions) else "fenced"

    async def _check_durability(self) -> Check:
        found = await check_durability(self._client, replicas=self._replicas)
        REDIS_DURABLE.set(1 if found.is_safe else 0)
        if found.is_safe:
            return Check("safe")
        if self._is_unsafe_allowed:
            return Check("vouched", "; ".join(found.problems))
        _log.error("redis_not_durable", problems=found.problems)
        return Check("unsafe", "; ".join(found.problems))

    async def _check_database(self) -> Check:
        if self._pool is None:
            return Check("not configured")
        async with translate_errors(), self._pool.connection(timeout=TIMEOUT_S) as connection:
            await connection.execute("SELECT 1")
        return UP


def make_handlers() -> list[HTTPRouteHandler]:
    """Make the descriptions of the probes; the router serves them by ``Health``."""

    @get(
        LIVE_PATH,
        tags=["health"],
        operation_id="isAlive",
        summary="Check liveness",
        description="Succeeds while the process runs. Checks no dependency.",
        response_description="The process runs.",
        responses=problems(400, 429, 503, omitted=UPDATE_ONLY),
        sync_to_thread=False,
    )
    def live() -> Alive:
        """Check liveness."""
        raise MethodNotAllowed("Use GET or HEAD", allow="GET, HEAD")

    @get(
        READY_PATH,
        tags=["health"],
        operation_id="isReady",
        summary="Check readiness",
        description="Fails while Redis is unreachable or could lose data, while no board is "
        "loaded, and while the process stops.",
        response_description="Ready: the process can receive requests.",
        responses=problems(400, 429)
        | {503: ResponseSpec(Readiness, False, "Not ready: send requests elsewhere.")},
        sync_to_thread=False,
    )
    def ready() -> Readiness:
        """Check readiness."""
        raise MethodNotAllowed("Use GET or HEAD", allow="GET, HEAD")

    return [live, ready]
