"""Live and ready. Live asks nothing; ready is Redis and its durability, and says how the rest is.

PostgreSQL is reported where it is configured, but its absence does not take the api out of service:
updates and reads do without it. Ready is red where no board is loaded, as neither an update nor a
read could succeed; a board that is fenced answers reads. While the process drains, ready is red so
that no new work comes.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import redis.asyncio as aioredis
from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from psycopg_pool import AsyncConnectionPool

from api.documents.responses import problems
from api.documents.schemas import Alive, Check, Readiness
from scoreboard.errors import NotFound, ScoreboardError, Uninitialised
from scoreboard.ledger.pool import Connection, translate_errors
from scoreboard.model import Partition
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import REDIS_DURABLE, get_logger
from scoreboard.security.tokens import Verifier
from scoreboard.store.catalogue import Catalogue
from scoreboard.store.client import check_durability, replicas_needed
from scoreboard.store.store import Store

PING_KEPT_S: Final = 1.0
BOARDS_KEPT_S: Final = 1.0
DURABILITY_KEPT_S: Final = 10.0
DATABASE_KEPT_S: Final = 5.0
TIMEOUT_S: Final = 1.0

UP: Final = Check("up")
_OPEN: Final = "open"
_NOT_LOADED: Final = "not loaded"
_log = get_logger(__name__)


class _CachedCheck:
    """One check, asked at most once in ``kept_s``, by one caller at a time."""

    def __init__(self, ask: Callable[[], Awaitable[Check]], kept_s: float) -> None:
        self._ask = ask
        self._kept_s = kept_s
        self._lock = asyncio.Lock()
        self._until_s = 0.0
        self._last = Check("unknown")

    async def get(self) -> Check:
        async with self._lock:
            if time.monotonic() >= self._until_s:
                try:
                    async with asyncio.timeout(TIMEOUT_S):
                        self._last = await self._ask()
                except TimeoutError:
                    self._last = Check("down", "no answer in time")
                except ScoreboardError as error:
                    self._last = Check("down", error.title)
                self._until_s = time.monotonic() + self._kept_s
            return self._last


class Health:
    """Knows how this process and its dependencies stand."""

    def __init__(
        self,
        settings: Settings,
        *,
        client: aioredis.Redis,
        store: Store,
        verifier: Verifier,
        catalogue: Catalogue,
        pool: AsyncConnectionPool[Connection] | None,
    ) -> None:
        self._client = client
        self._store = store
        self._boards = settings.boards
        self._is_vouched = settings.unsafe_redis
        self._replicas = replicas_needed(settings)
        self._verifier = verifier
        self._catalogue = catalogue
        self._pool = pool
        self._ping = _CachedCheck(self._ask_redis, PING_KEPT_S)
        self._board_states = _CachedCheck(self._ask_boards, BOARDS_KEPT_S)
        self._durability = _CachedCheck(self._ask_durability, DURABILITY_KEPT_S)
        self._database = _CachedCheck(self._ask_database, DATABASE_KEPT_S)
        self.draining = asyncio.Event()
        """Set when the process is about to stop."""

    def drain(self) -> None:
        """Turn ready red for good: the process is about to stop."""
        self.draining.set()

    async def ready(self) -> Readiness:
        """Tell how each dependency stands, and whether requests should come here."""
        if self.draining.is_set():
            return Readiness("draining", {})  # at once: whoever asks should turn away soon
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

    async def _ask_redis(self) -> Check:
        await self._store.now_s()
        return UP

    async def _ask_boards(self) -> Check:
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

    async def _ask_durability(self) -> Check:
        found = await check_durability(self._client, replicas=self._replicas)
        REDIS_DURABLE.set(1 if found.is_safe else 0)
        if found.is_safe:
            return Check("safe")
        if self._is_vouched:
            return Check("vouched", "; ".join(found.problems))
        _log.error("redis_not_durable", problems=found.problems)
        return Check("unsafe", "; ".join(found.problems))

    async def _ask_database(self) -> Check:
        if self._pool is None:
            return Check("not configured")
        async with translate_errors(), self._pool.connection(timeout=TIMEOUT_S) as connection:
            await connection.execute("SELECT 1")
        return UP


def make_handlers(health: Health | None) -> list[HTTPRouteHandler]:
    """Make the two probes; without ``health``, only to be described."""

    @get(
        "/health/live",
        tags=["health"],
        operation_id="isAlive",
        summary="Is the process alive",
        description="Answers as long as the process does; asks nothing of others.",
        responses=problems(400, 429, 503),
        sync_to_thread=False,
    )
    def live() -> Alive:
        """Tell that the process answers; asks nothing of others."""
        return Alive()

    @get(
        "/health/ready",
        tags=["health"],
        operation_id="isReady",
        summary="Should requests come here",
        description="Red while Redis is away or could lose data, while no board is loaded, and "
        "while the process stops.",
        responses=problems(400, 429)
        | {503: ResponseSpec(Readiness, False, "Send requests elsewhere.")},
    )
    async def ready() -> Response[Readiness]:
        """Tell whether requests should come here, and how each dependency stands."""
        if health is None:
            raise NotFound
        found = await health.ready()
        status = 200 if found.status == "ready" else 503
        return Response(found, status_code=status, headers={"Cache-Control": "no-store"})

    return [live, ready]
