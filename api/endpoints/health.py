"""Liveness and readiness of the api.

Liveness checks no dependency. Readiness requires Redis, its durability and a loaded board, and
reports the other dependencies. The api stays ready without PostgreSQL, because updates and reads do
not need it, and while a board is fenced, because its reads succeed. It is not ready while it
drains, so that no new requests arrive.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import redis.asyncio as aioredis
from litestar import get
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from psycopg_pool import AsyncConnectionPool

from api.documents.responses import UPDATE_ONLY, problems
from api.documents.schemas import Alive, Readiness
from scoreboard.errors import (
    MethodNotAllowed,
    RedisUnavailable,
    ScoreboardError,
    UnexpectedReply,
)
from scoreboard.health.checks import (
    CATALOGUE,
    DATABASE,
    DURABILITY,
    KEYS,
    REDIS,
    Check,
    board_name,
    describe_board,
    describe_durability,
    down,
    unknown,
)
from scoreboard.health.readings import describe_secrets, read_states
from scoreboard.http import probes
from scoreboard.http.request import Request
from scoreboard.http.response import HttpResponse
from scoreboard.ledger.pool import POSTGRES_UP, Connection, translate_errors
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import get_logger
from scoreboard.security.tokens import Verifier
from scoreboard.store.boards import Boards
from scoreboard.store.catalogue import Catalogue
from scoreboard.store.client import REDIS_UP
from scoreboard.store.cluster import ClusterClient
from scoreboard.store.durability_metrics import measure_durability

LIVE_PATH: Final = "/health/live"
READY_PATH: Final = "/health/ready"

REDIS_TTL_S: Final = 1.0
BOARDS_TTL_S: Final = 1.0
DURABILITY_TTL_S: Final = 10.0
DATABASE_TTL_S: Final = 5.0
TIMEOUT_S: Final = 1.0

MEASURE_EVERY_S: Final = 2.0
"""Interval of measuring the servers without probes, so that the metrics are current."""

UP: Final = Check("up")
_log = get_logger(__name__)


class _CachedChecks:
    """Checks that are made together, at most once in ``ttl_s``, and not concurrently."""

    def __init__(
        self, names: Sequence[str], make: Callable[[], Awaitable[list[Check]]], ttl_s: float
    ) -> None:
        self._names = names
        self._make = make
        self._ttl_s = ttl_s
        self._lock = asyncio.Lock()
        self._expires_at_s = 0.0
        self._last: list[Check] = []

    async def get(self) -> dict[str, Check]:
        """Return the checks by name."""
        async with self._lock:
            if time.monotonic() >= self._expires_at_s:
                try:
                    async with asyncio.timeout(TIMEOUT_S):
                        self._last = await self._make()
                except TimeoutError:
                    self._last = [down("no answer in time")] * len(self._names)
                except ScoreboardError as error:
                    self._last = [down(error.title)] * len(self._names)
                self._expires_at_s = time.monotonic() + self._ttl_s
            return dict(zip(self._names, self._last, strict=True))


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
        on_replica: Callable[[], None],
    ) -> None:
        """``on_replica`` is called when the server of ``client`` is no longer a primary."""
        self._settings = settings
        self._client = client
        self._store = store
        self._boards = settings.boards
        self._is_unsafe_allowed = settings.unsafe_redis
        self._verifier = verifier
        self._catalogue = catalogue
        self._pool = pool
        self._on_replica = on_replica
        self._board_names = [board_name(board) for board in self._boards]
        self._ping = _CachedChecks([REDIS], self._check_redis, REDIS_TTL_S)
        self._board_states = _CachedChecks(self._board_names, self._check_boards, BOARDS_TTL_S)
        self._durability = _CachedChecks([DURABILITY], self._check_durability, DURABILITY_TTL_S)
        self._database = _CachedChecks([DATABASE], self._check_database, DATABASE_TTL_S)
        self.is_listening = False
        """Whether the port of the api accepts connections; the metrics port does so earlier."""
        self.draining = asyncio.Event()
        """Set when the process is about to stop."""

    def drain(self) -> None:
        """Become not ready: the process is about to stop."""
        self.draining.set()

    async def run(self) -> None:
        """Measure Redis and PostgreSQL for the metrics until cancelled, also without probes."""
        while True:
            redis, database = await asyncio.gather(self._ping.get(), self._database.get())
            REDIS_UP.set(redis[REDIS] == UP)
            if self._pool is not None:
                POSTGRES_UP.set(database[DATABASE] == UP)
            if redis[REDIS] == UP:
                await self._durability.get()
            await asyncio.sleep(MEASURE_EVERY_S)

    async def ready(self) -> Readiness:
        """Return the state of each dependency, and whether this process should get requests."""
        if self.draining.is_set():
            return Readiness("draining", {})  # without checks, so that traffic moves away soon
        checks, database = await asyncio.gather(self._ping.get(), self._database.get())
        if checks[REDIS].state == "up":
            for found in await asyncio.gather(self._durability.get(), self._board_states.get()):
                checks |= found
        else:
            names = (DURABILITY, *self._board_names)
            checks |= dict.fromkeys(names, unknown("Redis does not answer"))
        is_loaded = any(
            checks[name].state not in {"uninitialised", "down", "unknown"}
            for name in self._board_names
        )
        is_able = (
            is_loaded
            and checks[DURABILITY].state in {"safe", "vouched", "accepted"}
            and self._catalogue.is_loaded
        )
        checks |= {
            KEYS: UP if self._verifier.is_ready else down("no key set was read yet"),
            CATALOGUE: UP if self._catalogue.is_loaded else down("not read yet"),
            **database,
            **describe_secrets(),
        }
        return Readiness("ready" if is_able else "not ready", checks)

    async def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Return whether this process should get requests, and the facts that decide it."""
        found = await self.ready()
        status = found.status if self.is_listening else "not ready"
        return status == "ready", {"status": status, "checks": found.checks}

    async def answer_live(self, _: Request) -> HttpResponse:
        """Answer the liveness probe."""
        return probes.liveness(Alive().status)

    async def answer_ready(self, _: Request) -> HttpResponse:
        """Answer the readiness probe."""
        found = await self.ready()
        facts = {"status": found.status, "checks": found.checks}
        return probes.readiness(is_ready=found.status == "ready", facts=facts)

    async def _check_redis(self) -> list[Check]:
        await self._store.now_s()
        return [UP]

    async def _check_boards(self) -> list[Check]:
        return [await self._check_board(board) for board in self._boards]

    async def _check_board(self, board: str) -> Check:
        """Return the check of one board; keys that cannot be read do not affect other boards.

        Nor does a primary of a cluster that is away: then the process serves the other partitions.
        """
        try:
            return describe_board(board, None, await read_states(self._store, board))
        except UnexpectedReply as error:
            return down(error.title)
        except RedisUnavailable as error:
            if not isinstance(self._client, ClusterClient):
                raise
            return Check("partly away", error.title)

    async def _check_durability(self) -> list[Check]:
        found = await measure_durability(self._client, self._settings)
        if not found.is_primary:
            self._on_replica()
        check = describe_durability(found, is_unsafe_allowed=self._is_unsafe_allowed)
        if check.state == "unsafe":
            _log.error("redis_not_durable", problems=found.problems)
        return [check]

    async def _check_database(self) -> list[Check]:
        if self._pool is None:
            return [Check("not configured")]
        async with translate_errors(), self._pool.connection(timeout=TIMEOUT_S) as connection:
            await connection.execute("SELECT 1")
        return [UP]


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
