"""Drives a board on real servers, by the code of the services: the other side of test_competitions.

Nothing runs between two calls, so the test decides what is committed, and when: ``flush`` runs the
flusher of each partition until it has nothing left, or until it dies.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Self

import msgspec
import redis

from flusher.batch import Batch
from flusher.consumer import Consumer
from flusher.leases import Leases
from flusher.partition import PartitionFlusher
from flusher.spare_sessions import SpareSessions
from flusher.writer import Writer
from scoreboard.errors import ScoreboardError
from scoreboard.ledger.boards import insert_board
from scoreboard.ledger.pool import Connection, connect
from scoreboard.ledger.seasons import freeze_season, select_seasons_to_freeze
from scoreboard.model import Action, Board, Partition, Receipt
from scoreboard.moderation.acts import Done, Moderator
from scoreboard.moderation.plans import Request
from scoreboard.recovery.reseed import SESSION, reseed
from scoreboard.recovery.verify import Verdict, verify
from scoreboard.runtime.lifecycle import StopEvent
from scoreboard.runtime.settings import Settings
from scoreboard.seasons import Season
from scoreboard.store.client import make_client
from scoreboard.store.dispatcher import Dispatcher
from scoreboard.store.keys import GROUP, PartitionKeys
from scoreboard.store.store import Store
from tests.support.clients.scripts import Scripts
from tests.support.eventually import eventually_async

REASON = "a test"


class Died(Exception):  # noqa: N818 (not an error of the product)
    """The flusher was killed after a COMMIT."""


class _MortalConsumer(Consumer):
    """Dies instead of acknowledging batch number ``lives``, which is committed."""

    lives = 0

    async def acknowledge(self, batch: Batch, **options: Any) -> int:
        if self.lives == 0:
            raise Died
        self.lives -= 1
        return await super().acknowledge(batch, **options)


class _Sessions(SpareSessions):
    """Hands on one session, which costs more to open than a small batch to commit."""

    kept: "_KeptWriter | None" = None

    async def open(self, partition: Partition) -> Writer:
        if self.kept is None or self.kept.connection.closed:
            self.kept = await _KeptWriter.open(self._settings, partition)
            await self.kept.connection.execute("SET idle_session_timeout = 0")
        return _KeptWriter(self.kept.connection, partition)


class _KeptWriter(Writer):
    async def aclose(self) -> None:
        """Leave the lease, and keep the session."""
        await self.release_lease()


class Servers:
    """Clients of both stores; an async context manager."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.client = make_client(settings, name="test")
        self.store = Store(self.client)
        self.scripts = Scripts(redis.Redis.from_url(settings.redis_url.reveal()), is_real=True)
        self.dispatcher = Dispatcher(settings)
        self.sessions = _Sessions(settings)
        self.connection: Connection
        self._dispatching: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        self.connection = await connect(self.settings, name="test", autocommit=True, **SESSION)
        self._dispatching = asyncio.create_task(self.dispatcher.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.dispatcher.close()
        await self._dispatching
        await self.connection.close()
        if self.sessions.kept is not None:
            await self.sessions.kept.connection.close()
        await self.client.aclose()
        self.scripts.client.close()


class RealBoard:
    """One board of the servers."""

    def __init__(self, servers: Servers, board: Board) -> None:
        self.servers = servers
        self.board = board
        self.name = board.name
        self.numbers = range(board.layout.partitions)
        self.store = servers.store

    async def open(self) -> None:
        await self.servers.client.flushall()
        await insert_board(self.servers.connection, self.board)
        await self.reseed()

    async def reseed(self, *, is_emptied: bool = False) -> None:
        """Rebuild the drained board."""
        if is_emptied:
            await self.servers.client.flushall()
        await reseed(
            self.store, self.servers.connection, self.board, list(self.numbers), actor="test"
        )
        await self._unlock()

    async def submit(self, *actions: Action) -> list[Receipt | BaseException]:
        """Apply actions that arrive at once, in this order."""
        waiting = [self.servers.dispatcher.submit(self.name, action) for action in actions]
        return await asyncio.gather(*waiting, return_exceptions=True)

    async def perform(self, request: Request, act_id: str) -> Done:
        async with self.moderator() as moderator:
            plan = await moderator.plan(request)
            return await moderator.perform(request, plan, reason=REASON, act_id=act_id)

    @asynccontextmanager
    async def moderator(self) -> AsyncIterator[Moderator]:
        connection = self.servers.connection
        try:
            yield Moderator(self.store, connection, self.board, actor="test", stream_cap=1000)
        finally:
            await self._unlock()

    async def flush(self, *, dies_after: int | None = None) -> None:
        """Run the flusher of each partition until all is committed, or until it dies.

        It dies after the COMMIT of a batch that follows ``dies_after`` acknowledged ones.
        """
        for number in self.numbers:
            if not await self.is_drained(number):
                await self._flush(number, dies_after)

    async def _flush(self, number: int, dies_after: int | None) -> None:
        partition, settings = Partition(self.name, number), self.servers.settings
        async with make_client(settings, name="test", decode=False, connections=2) as client:
            make = Consumer if dies_after is None else _MortalConsumer
            consumer = make(client, self.store, partition, timeout_s=settings.redis_timeout_s)
            if isinstance(consumer, _MortalConsumer):
                consumer.lives = dies_after or 0
            leases = Leases([partition])
            stop = StopEvent(5.0)
            flusher = PartitionFlusher(
                partition, settings, consumer, self.store, leases, sessions=self.servers.sessions
            )
            running = asyncio.create_task(flusher.run(stop))

            async def is_over() -> bool:
                return running.done() or await self.is_drained(number)

            await eventually_async(is_over, within_s=30, every_s=0.002)
            stop.set()
            with suppress(Died):
                await running

    async def is_drained(self, number: int) -> bool:
        """Return whether PostgreSQL has everything, and nothing is to be corrected."""
        partition = Partition(self.name, number)
        state, backlog = await self.store.state(partition), await self.store.backlog(partition)
        [(open_,)] = await self.query(
            "SELECT count(*) FROM rejected_events"
            " WHERE board = %(board)s AND part = %(part)s AND corrected_at IS NULL",
            part=number,
        )
        return not backlog.entries and not open_ and state.seq == await self.committed(number)

    async def committed(self, number: int) -> int:
        """Return the seq up to which PostgreSQL has everything."""
        [(seq,)] = await self.query(
            "SELECT seq FROM flush_state WHERE board = %(board)s AND part = %(part)s", part=number
        )
        return seq

    async def end_season(self, end_s: int) -> None:
        """Let the current season have this end, everywhere, as if it had been the end all along."""
        for number in self.numbers:
            keys = PartitionKeys(Partition(self.name, number))
            before = str(await self.servers.client.hget(keys.meta, "season"))
            season = Season.parse(before)
            after = str(msgspec.structs.replace(season, end_s=end_s))
            await self.servers.client.hset(keys.meta, "season", after)
            await self._rewrite(keys.events, before, after)
            await self.query(
                "UPDATE flush_state SET season = %(after)s"
                " WHERE board = %(board)s AND season = %(before)s",
                before=before,
                after=after,
            )
            await self.query(
                "UPDATE seasons SET ends_at = to_timestamp(%(end_s)s)"
                " WHERE board = %(board)s AND season = %(season)s",
                season=season.id,
                end_s=end_s,
            )

    async def _rewrite(self, events: str, before: str, after: str) -> None:
        """Replace a season in the entries of a stream; all of them are delivered again."""
        client = self.servers.client
        info = await client.xinfo_stream(events)
        entries = await client.xrange(events)
        async with client.pipeline() as pipe:
            pipe.delete(events)
            pipe.xgroup_create(events, GROUP, id="0", mkstream=True)
            for stream_id, fields in entries:
                season = fields.get("p")
                changed = {**fields, "p": after} if season == before else fields
                pipe.xadd(events, changed, id=stream_id)
            pipe.execute_command("XSETID", events, info["last-generated-id"])
            await pipe.execute()

    async def turn(self, number: int) -> str:
        """Turn a partition if its season has ended; return the id of its season."""
        season = await self.store.turn(Partition(self.name, number), self.board.layout.rules)
        return season.id if season else ""

    async def freeze(self) -> None:
        connection = self.servers.connection
        for board, season in await select_seasons_to_freeze(connection, limit=100):
            if board == self.name:
                assert await freeze_season(connection, board, season)

    async def forget_actions(self) -> None:
        """End the dedup window."""
        keys = [key async for key in self.servers.client.scan_iter("*:seen:*")]
        if keys:
            await self.servers.client.delete(*keys)

    async def begin_another_window(self) -> None:
        """Make the counters of the present window those of an earlier one."""
        for number in self.numbers:
            key = PartitionKeys(Partition(self.name, number)).gained
            if await self.servers.client.hexists(key, "/ends"):
                await self.servers.client.hincrby(key, "/ends", -1000)

    async def banned(self, number: int) -> dict[str, int]:
        """Return the banned users whom a partition has, with their scores, -1 for none."""
        key = PartitionKeys(Partition(self.name, number)).banned
        return {u: int(score) for u, score in (await self.servers.client.hgetall(key)).items()}

    async def next_moment(self) -> datetime:
        """Return a time before which is what was accepted, and after which what will be."""
        moment_ms = int(await self.store.now_s() * 1000) + 1

        async def is_over() -> bool:
            return await self.store.now_s() * 1000 >= moment_ms

        await eventually_async(is_over, every_s=0.001)
        return datetime.fromtimestamp(moment_ms / 1000, UTC)

    async def verify(self) -> Verdict:
        return await verify(
            self.servers.client,
            self.servers.connection,
            self.board,
            sample=None,
            report=lambda *_: None,
        )

    def snapshot(self) -> dict[str, object]:
        """Return the contents of Redis."""
        return self.servers.scripts.snapshot()

    async def query(self, statement: str, **parameters: Any) -> list[tuple[Any, ...]]:
        cursor = await self.servers.connection.execute(
            statement.encode(), {"board": self.name, **parameters}
        )
        return await cursor.fetchall() if cursor.description else []

    async def _unlock(self) -> None:
        """Let the next operator work: the locks of one end with its connection."""
        await self.servers.connection.execute("SELECT pg_advisory_unlock_all()")


def outcome_of(done: Receipt | BaseException) -> Receipt | type[ScoreboardError]:
    """Return a receipt, or the class of an error; raise one that is not of the product."""
    if isinstance(done, Receipt):
        return done
    if isinstance(done, ScoreboardError):
        return type(done)
    raise done
