"""Puts the api together: the only file that knows every part.

``create_app`` does no I/O; ``Api.running`` opens what must be open while requests are served. Order
at the end: the server has finished its requests, then the dispatcher sends what waits, then
connections close.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from litestar import Litestar
from litestar.datastructures import State

from api import documents, page, problems
from api.direct import DirectUpdate
from api.edge import DirectHandler, Edge
from api.health import Health, make_handlers
from api.names import Names
from api.rate_limit import Limiter
from api.reads import Reads
from api.scores import Scores, Services
from api.stream import PATH as STREAM_PATH
from api.stream import EventStream
from api.updates import Updates
from scoreboard import migrations, postgres
from scoreboard.auth import Verifier
from scoreboard.catalogue import Catalogue
from scoreboard.commits import Commits
from scoreboard.credentials import keep_fresh
from scoreboard.errors import DatabaseUnavailable, RedisUnavailable, UnsafeDatabase
from scoreboard.live import Dispatcher, Live
from scoreboard.redis_client import make_client, require_durability
from scoreboard.resources import web_path
from scoreboard.settings import Settings
from scoreboard.telemetry import get_logger

POOL_CLOSE_S: Final = 1.0
"""Time for the pool's own tasks to end; one may be connecting to a server that does not answer."""

_log = get_logger(__name__)


class Api:
    """The application behind the server, with everything that it needs."""

    def __init__(self, settings: Settings, *, direct: bool = True) -> None:
        """``direct`` false leaves the update to the framework's handler, to compare the two.

        Raises SettingInvalid.
        """
        self._settings = settings
        self._client = make_client(settings, name="api")
        self._live = Live(self._client)
        self._pool = postgres.make_pool(settings, name="api") if settings.database_url else None
        self._verifier = Verifier(settings)
        self._catalogue = Catalogue(settings, self._live)
        self._dispatcher = Dispatcher(settings, name="api-dispatcher")
        self._limiter = Limiter(settings) if settings.rate_limit == "app" else None
        self.health = Health(
            settings,
            client=self._client,
            live=self._live,
            verifier=self._verifier,
            catalogue=self._catalogue,
            pool=self._pool,
        )
        self._commits = (
            Commits(self._live, self._dispatcher, limit_s=settings.commit_timeout_s)
            if settings.acknowledge == "committed"
            else None
        )
        updates = Updates(settings, self._catalogue, self._dispatcher, self._limiter, self._commits)
        self._names = Names(self._pool)
        reads = Reads(settings, self._live, self._names)
        self.litestar = Litestar(
            route_handlers=[
                Scores,
                *make_handlers(self.health),
                *page.make_handlers(settings, web_path()),
                *documents.make_handlers(settings),
            ],
            exception_handlers={Exception: problems.respond},
            openapi_config=None,
            logging_config=None,
            request_max_body_size=settings.body_bytes,
            state=State({"services": Services(settings, self._verifier, updates, reads)}),
        )
        self._stream = EventStream(settings, self._verifier, self.health.draining)
        handlers: dict[tuple[str, str], DirectHandler] = {("GET", STREAM_PATH): self._stream}
        if direct:
            handlers["POST", "/api/scores/update"] = DirectUpdate(self._verifier, updates)
        self.edge = Edge(settings, self.litestar, handlers)
        """Answers requests: the server's handler."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hold open what requests need; a side task that dies ends the block with its error.

        Raises UnsafeRedis or SchemaMismatch where a reachable server cannot be used. One that is
        not reachable is waited for, with ready red.
        """
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._client.aclose)
            if self._limiter is not None:
                stack.push_async_callback(self._limiter.close)
            await self._check_redis()
            await self._open_database(stack)
            async with asyncio.TaskGroup() as tasks:
                dispatcher = tasks.create_task(self._dispatcher.run())
                side = [
                    tasks.create_task(self._verifier.run()),
                    tasks.create_task(self._catalogue.run()),
                    tasks.create_task(self._stream.run()),
                    tasks.create_task(self._names.run()),
                    tasks.create_task(keep_fresh()),
                ]
                if self._commits is not None:
                    side.append(tasks.create_task(self._commits.run()))
                try:
                    yield
                    self._dispatcher.close()
                    await dispatcher
                finally:
                    for task in side:
                        task.cancel()

    async def _check_redis(self) -> None:
        try:
            await require_durability(self._client, self._settings)
            await self._catalogue.load()
        except RedisUnavailable:
            _log.warning("redis_not_reachable_at_start")

    async def _open_database(self, stack: AsyncExitStack) -> None:
        if self._pool is None:
            return
        try:
            connection = await postgres.connect(self._settings, name="api-start")
            async with connection:
                await migrations.require_current(connection)
        except (DatabaseUnavailable, UnsafeDatabase) as error:
            _log.warning("database_not_reachable_at_start", reason=error.detail)
        await self._pool.open(wait=False)
        stack.push_async_callback(self._pool.close, POOL_CLOSE_S)


def create_app(settings: Settings, *, direct: bool = True) -> Api:
    """Make the application. It does no I/O; serve it within ``running``.

    Raises SettingInvalid.
    """
    return Api(settings, direct=direct)
