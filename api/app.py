"""Composes the api from its parts.

``create_app`` does no I/O. ``Api.running`` holds connections and background tasks while requests
are served. Shutdown order: the server has finished its requests, then the dispatcher sends what is
queued, then connections close.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from litestar import Litestar
from litestar.datastructures import State

from api.documents import openapi
from api.edge import problems
from api.edge.rate_limit import RateLimiter
from api.edge.request_tracing import RequestTracing
from api.edge.router import RouteHandler, Router
from api.endpoints import health, oembed, static_files
from api.endpoints.admin.acts import Acts
from api.endpoints.admin.boards import AdminBoards
from api.endpoints.admin.processes import Processes
from api.endpoints.admin.records import Records
from api.endpoints.admin.sessions import AdminSessions
from api.endpoints.admission import Admission
from api.endpoints.board_pages import BoardPages
from api.endpoints.board_reader import BoardReader
from api.endpoints.boards import BoardInformation
from api.endpoints.bulk_update import PATH as BULK_PATH
from api.endpoints.bulk_update import BulkUpdate
from api.endpoints.event_streams import PATH as STREAM_PATH
from api.endpoints.event_streams import EventStreams
from api.endpoints.fast_reads import (
    LEADERBOARD_PATH,
    OWN_STANDING_PATH,
    STANDING_PATH,
    STANDINGS_PATH,
    FastReads,
)
from api.endpoints.fast_update import PATH as UPDATE_PATH
from api.endpoints.fast_update import FastUpdate
from api.endpoints.history import HistoryReader
from api.endpoints.rankings import Rankings
from api.endpoints.scores import Scores, Services
from api.endpoints.seasons import SeasonReader
from api.endpoints.updates import UpdateService
from scoreboard.errors import DatabaseUnavailable, RedisUnavailable, UnsafeDatabase
from scoreboard.ledger import migrations
from scoreboard.ledger import pool as postgres
from scoreboard.ledger.name_cache import NameCache
from scoreboard.ledger.pool_metrics import export_pool
from scoreboard.runtime.resources import web_path
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import get_logger
from scoreboard.runtime.tracing import make_tracing
from scoreboard.security.credentials import refresh_secrets, require_secrets
from scoreboard.security.proofs import ProofVerifier
from scoreboard.security.tokens import Verifier
from scoreboard.store.board_directory import BoardDirectory
from scoreboard.store.boards import BOARD_SCRIPTS, Boards
from scoreboard.store.catalogue import Catalogue
from scoreboard.store.client import make_client
from scoreboard.store.commit_waiter import CommitWaiter
from scoreboard.store.dispatcher import Dispatcher
from scoreboard.store.durability import require_durability
from scoreboard.store.read_batcher import ReadBatcher
from scoreboard.store.store import Store

POOL_CLOSE_S: Final = 1.0
"""Time for the pool's tasks to end; one may be connecting to an unresponsive server."""

_log = get_logger(__name__)


class Api:
    """The application behind the server, with its dependencies."""

    def __init__(self, settings: Settings, *, direct: bool = True) -> None:
        """``direct`` false serves updates and reads by the framework, for comparison.

        Raises SettingInvalid.
        """
        self._settings = settings
        self._client = make_client(settings, name="api")
        self._store = Store(self._client)
        self._pool = postgres.make_pool(settings, name="api") if settings.database_url else None
        if self._pool is not None:
            export_pool(self._pool)
        self._verifier = Verifier(settings)
        self._proofs = ProofVerifier(settings)
        self._catalogue = Catalogue(settings, self._store)
        directory = BoardDirectory(settings, self._store)
        self._dispatcher = Dispatcher(settings, name="api-dispatcher")
        self._reads = ReadBatcher(settings, BOARD_SCRIPTS, name="api-reads")
        self._tracing = make_tracing(settings, "api")
        self._limiter = RateLimiter(settings) if settings.rate_limit == "app" else None
        self.health = health.Health(
            settings,
            client=self._client,
            store=self._store,
            verifier=self._verifier,
            catalogue=self._catalogue,
            pool=self._pool,
            on_replica=self._reads.reconnect,
        )
        self._commits = (
            CommitWaiter(settings, self._store, self._dispatcher)
            if settings.acknowledge == "committed"
            else None
        )
        self._names = NameCache(settings if settings.database_url else None, name="api-names")
        self._streams = EventStreams(
            settings, self._verifier, self.health.draining, directory, self._names
        )
        reads = BoardReader(
            Boards(self._client, self._reads),
            directory,
            self._names,
            self._streams.watcher,
            self._streams.watch,
        )
        updates = UpdateService(
            directory,
            Admission(self._catalogue, self._proofs, settings.boards[0]),
            self._dispatcher,
            self._limiter,
            commits=self._commits,
            note_update=reads.note_update,
        )
        fast_reads = FastReads(self._verifier, reads)
        services = Services(
            self._verifier,
            updates,
            reads,
            fast_reads,
            BoardPages(self._store),
            HistoryReader(self._pool),
            SeasonReader(self._pool, reads),
        )
        self._admin = AdminSessions(settings) if settings.admin_api else None
        self._processes = Processes(settings) if settings.admin_api else None
        self.litestar = Litestar(
            route_handlers=[
                Scores,
                Rankings,
                BoardInformation,
                *([Acts, AdminBoards, Records] if self._admin is not None else []),
                *health.make_handlers(),
                *static_files.make_handlers(settings, web_path()),
                *oembed.make_handlers(),
                *openapi.make_handlers(settings),
            ],
            exception_handlers={Exception: problems.respond},
            openapi_config=None,
            logging_config=None,
            request_max_body_size=settings.body_bytes,
            state=State({"services": services, "admin": self._admin, "processes": self._processes}),
        )
        routes: dict[tuple[str, str], RouteHandler] = {
            ("GET", STREAM_PATH): self._streams,
            ("POST", BULK_PATH): BulkUpdate(self._verifier, updates),
        }
        for method in ("GET", "HEAD"):
            routes[method, health.LIVE_PATH] = self.health.answer_live
            routes[method, health.READY_PATH] = self.health.answer_ready
            if direct:
                routes[method, LEADERBOARD_PATH] = fast_reads.leaderboard
                routes[method, STANDING_PATH] = fast_reads.standing
                routes[method, STANDINGS_PATH] = fast_reads.standings
                routes[method, OWN_STANDING_PATH] = fast_reads.own_standing
        if direct:
            routes["POST", UPDATE_PATH] = FastUpdate(self._verifier, updates)
        tracing = RequestTracing(self._tracing, settings) if self._tracing is not None else None
        self.router = Router(settings, self.litestar, routes, tracing)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hold connections and background tasks; a failed task ends the block with its error.

        Raises UnsafeRedis or SchemaMismatch if a reachable server cannot be used, and
        SecretsUnavailable if a login cannot be read. The api starts
        without a server that is unreachable, and is not ready until it is reachable.
        """
        async with AsyncExitStack() as stack:
            if self._tracing is not None:
                await stack.enter_async_context(self._tracing.running())
            stack.push_async_callback(self._client.aclose)
            if self._limiter is not None:
                stack.push_async_callback(self._limiter.close)
            await require_secrets(self._settings, "redis")
            if self._pool is not None:
                await require_secrets(self._settings, "database")
            if self._admin is not None:
                stack.push_async_callback(self._admin.aclose)
                await self._admin.start()
            if self._processes is not None:
                stack.push_async_callback(self._processes.aclose)
            await self._check_redis()
            await self._open_database(stack)
            async with asyncio.TaskGroup() as tasks:
                batchers = [
                    tasks.create_task(self._dispatcher.run()),
                    tasks.create_task(self._reads.run()),
                ]
                background = [
                    tasks.create_task(self._verifier.run()),
                    tasks.create_task(self._proofs.run()),
                    tasks.create_task(self._catalogue.run()),
                    tasks.create_task(self._streams.run()),
                    tasks.create_task(self._names.run()),
                    tasks.create_task(self.health.run()),
                    tasks.create_task(refresh_secrets()),
                ]
                if self._commits is not None:
                    background.append(tasks.create_task(self._commits.run()))
                try:
                    yield
                    self._dispatcher.close()
                    self._reads.close()
                    await asyncio.wait(batchers)
                finally:
                    for task in background:
                        task.cancel()

    async def _check_redis(self) -> None:
        try:
            await require_durability(self._client, self._settings)
            await self._catalogue.load()
        except RedisUnavailable:
            _log.warning("redis_unreachable_at_start")

    async def _open_database(self, stack: AsyncExitStack) -> None:
        if self._pool is None:
            return
        try:
            connection = await postgres.connect(self._settings, name="api-start")
            async with connection:
                await migrations.require_schema(connection)
        except (DatabaseUnavailable, UnsafeDatabase) as error:
            _log.warning("database_unreachable_at_start", reason=error.detail)
        await self._pool.open(wait=False)
        stack.push_async_callback(self._pool.close, POOL_CLOSE_S)


def create_app(settings: Settings, *, direct: bool = True) -> Api:
    """Make the application without I/O; serve it within ``running``.

    Raises SettingInvalid.
    """
    return Api(settings, direct=direct)
