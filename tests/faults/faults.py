"""The faults. Each is an async function of the stack and a seeded random generator.

A fault breaks one thing, waits for the effect and repairs it; it returns when the system can serve
requests again.
"""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from psycopg import errors

from scoreboard.model import Partition
from scoreboard.store.keys import GROUP, PartitionKeys
from tests.faults.checks import drain
from tests.faults.stack import SERVICES, Stack
from tests.support.eventually import eventually_async
from tests.support.fakes.proxy import TO_SERVER

MAIN = Partition("main")
KEYS = PartitionKeys(MAIN)
Inflict = Callable[[Stack, random.Random], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """A kind of fault. ``needs_rest``: Redis loses data, so the stream is drained first."""

    name: str
    inflict: Inflict
    needs_rest: bool = False


FAULTS: dict[str, Fault] = {}


def fault(*, needs_rest: bool = False) -> Callable[[Inflict], Inflict]:
    """Register a function in ``FAULTS`` under its name."""

    def register(inflict: Inflict) -> Inflict:
        FAULTS[inflict.__name__] = Fault(inflict.__name__, inflict, needs_rest)
        return inflict

    return register


SHARED = (
    "api_killed",
    "flusher_killed",
    "streamer_killed",
    "flusher_paused",
    "scripts_flushed",
    "database_stopped_immediately",
    "commit_answers_lost",
    "commits_lost",
    "backends_terminated",
    "reseeded_under_load",
    "resharded_under_load",
)
"""Faults that need no single server: they also apply to a cluster and to replicas."""


async def _kill_and_start(stack: Stack, name: str) -> None:
    await asyncio.to_thread(stack.services[name].kill)
    await stack.start(name)


async def _pause(stack: Stack, name: str, seconds: float) -> None:
    stack.signal(name, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        stack.signal(name, signal.SIGCONT)


@fault()
async def api_killed(stack: Stack, _: random.Random) -> None:
    """SIGKILL the api during requests."""
    await _kill_and_start(stack, "api")


@fault()
async def flusher_killed(stack: Stack, _: random.Random) -> None:
    """SIGKILL the flusher at any moment of its transaction."""
    await _kill_and_start(stack, "flusher")


@fault()
async def streamer_killed(stack: Stack, _: random.Random) -> None:
    """SIGKILL the streamer; viewers reconnect by themselves."""
    await _kill_and_start(stack, "streamer")


@fault()
async def redis_killed(stack: Stack, _: random.Random) -> None:
    """SIGKILL Redis under load and restart it with its files."""
    await asyncio.to_thread(stack.valkey.kill)
    await asyncio.to_thread(stack.valkey.start)


@fault()
async def append_only_file_torn(stack: Stack, chance: random.Random) -> None:
    """Kill Redis and leave part of a transaction after the last fsync, as after a power cut."""
    await asyncio.to_thread(stack.valkey.kill)
    file = stack.append_only_file
    command = b"*1\r\n$5\r\nMULTI\r\n*4\r\n$4\r\nZADD\r\n$17\r\nsb:{main:0}:board\r\n$3\r\n999\r\n"
    with file.open("ab") as tail:
        tail.write(command[: chance.randint(1, len(command) - 1)])
    await asyncio.to_thread(stack.valkey.start)


@fault()
async def redis_paused(stack: Stack, chance: random.Random) -> None:
    """SIGSTOP Redis for longer than any timeout of the api."""
    await _pause(stack, "valkey", chance.uniform(1.2, 2.5))


@fault()
async def flusher_paused(stack: Stack, chance: random.Random) -> None:
    """SIGSTOP the flusher, and resume it."""
    await _pause(stack, "flusher", chance.uniform(0.5, 2.5))


@fault()
async def scripts_flushed(stack: Stack, _: random.Random) -> None:
    """Flush the scripts ten times."""
    async with stack.servers() as servers:
        for _ in range(10):
            for server in servers:
                await server.script_flush()
            await asyncio.sleep(0.05)


@fault()
async def group_destroyed(stack: Stack, _: random.Random) -> None:
    """Destroy the consumer group, with its position and pending entries."""
    async with stack.redis() as client:
        await client.xgroup_destroy(KEYS.events, GROUP)


@fault()
async def consumers_deleted(stack: Stack, _: random.Random) -> None:
    """Delete the consumers, which drops their pending entries."""
    async with stack.redis() as client:
        for consumer in await client.xinfo_consumers(KEYS.events, GROUP):
            await client.xgroup_delconsumer(KEYS.events, GROUP, consumer["name"])


@fault()
async def clients_killed(stack: Stack, _: random.Random) -> None:
    """Kill all connections of clients every 100 ms."""
    async with stack.redis() as client:
        for _ in range(8):
            await client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await asyncio.sleep(0.1)


@fault()
async def redis_cut(stack: Stack, _: random.Random) -> None:
    """Reset every connection to Redis three times."""
    for _ in range(3):
        stack.redis_proxy.cut()
        await asyncio.sleep(0.2)


@fault()
async def redis_answers_lost(stack: Stack, _: random.Random) -> None:
    """Deliver an update to Redis and drop its reply."""
    lost = stack.redis_proxy.cut_when(TO_SERVER, b"win:", deliver=True)
    await _within(lost, 3)
    await stack.redis_proxy.restore()


@fault()
async def redis_frozen(stack: Stack, chance: random.Random) -> None:
    """Forward nothing to and from Redis for a while; connections stay open."""
    stack.redis_proxy.freeze()
    await asyncio.sleep(chance.uniform(1.2, 2.5))
    await stack.redis_proxy.restore()


@fault()
async def redis_delayed(stack: Stack, _: random.Random) -> None:
    """Delay every chunk to and from Redis by 150 ms."""
    stack.redis_proxy.delay(0.15)
    await asyncio.sleep(2)
    await stack.redis_proxy.restore()


@fault()
async def database_stopped_immediately(stack: Stack, chance: random.Random) -> None:
    """SIGQUIT PostgreSQL, which then recovers from its log; SIGKILL would leave its children."""
    stack.signal("postgres", signal.SIGQUIT)
    await asyncio.to_thread(stack.postgres.stop)
    await asyncio.sleep(chance.uniform(0, 1))
    await asyncio.to_thread(stack.postgres.start)


@fault()
async def commit_answers_lost(stack: Stack, _: random.Random) -> None:
    """Deliver COMMIT to PostgreSQL and drop its reply."""
    lost = stack.database_proxy.cut_when(TO_SERVER, b"COMMIT", deliver=True)
    await _within(lost, 3)
    await stack.database_proxy.restore()


@fault()
async def commits_lost(stack: Stack, _: random.Random) -> None:
    """Reset the connection before COMMIT is delivered."""
    lost = stack.database_proxy.cut_when(TO_SERVER, b"COMMIT", deliver=False)
    await _within(lost, 3)
    await stack.database_proxy.restore()


@fault()
async def backends_terminated(stack: Stack, _: random.Random) -> None:
    """Terminate every database session of the services."""
    with stack.sql() as connection:
        for _ in range(5):
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name LIKE 'scoreboard%'"
            )
            await asyncio.sleep(0.1)


@fault()
async def ledger_locked(stack: Stack, _: random.Random) -> None:
    """Lock the ledger in another session for longer than lock_timeout."""
    with stack.sql() as connection, connection.transaction():
        connection.execute("LOCK TABLE score_events IN EXCLUSIVE MODE")
        await asyncio.sleep(2)


@fault()
async def deadlocks(stack: Stack, _: random.Random) -> None:
    """Lock rows of scores in another session in an order that causes deadlocks."""

    def collide() -> None:
        with stack.sql() as connection:
            for _ in range(5):
                try:
                    with connection.transaction():
                        connection.execute("SELECT 1 FROM scores ORDER BY user_id DESC FOR UPDATE")
                        connection.execute("SELECT 1 FROM flush_state FOR UPDATE")
                except (errors.DeadlockDetected, errors.LockNotAvailable):
                    continue

    await asyncio.to_thread(collide)


@fault()
async def poison(stack: Stack, chance: random.Random) -> None:
    """Add an undecodable record between valid ones."""
    records: list[dict[str, bytes]] = [
        {"x": b"invalid"},
        {"q": b"NaN", "u": b"a", "a": b"b", "d": b"1", "s": b"1", "e": b"1"},
        {"u": b"nul\0", "a": b"b", "d": b"1", "s": b"1", "e": b"1"},
    ]
    async with stack.redis() as client:
        await client.xadd(KEYS.events, chance.choice(records))  # pyright: ignore[reportArgumentType]


@fault()
async def rewritten_under_load(stack: Stack, chance: random.Random) -> None:
    """Start BGREWRITEAOF and kill Redis during it."""
    async with stack.redis() as client:
        await client.bgrewriteaof()
    await asyncio.sleep(chance.uniform(0, 0.3))
    await redis_killed(stack, chance)


@fault()
async def reseeded_under_load(stack: Stack, chance: random.Random) -> None:
    """Reseed a board under load."""
    await stack.reseed(chance.choice(stack.boards))


@fault()
async def resharded_under_load(stack: Stack, chance: random.Random) -> None:
    """Give the board more partitions and the one it had, with the flusher killed in between."""
    board = stack.boards[0]
    before = board.layout.partitions
    await stack.reshard(board, before + chance.randint(1, 3))
    await _kill_and_start(stack, "flusher")
    await stack.reshard(board, before)


@fault(needs_rest=True)
async def redis_emptied(stack: Stack, _: random.Random) -> None:
    """Flush Redis, and reseed the board."""
    async with stack.redis() as client:
        await client.flushall()
    await asyncio.sleep(0.5)
    await stack.reseed(stack.boards[0])


@fault(needs_rest=True)
async def redis_rewound(stack: Stack, chance: random.Random) -> None:
    """Restart Redis with older data than PostgreSQL has, as after a lossy failover, under load.

    The lost actions are committed, so no acknowledged action may be missing after the reseed.
    """
    older = await asyncio.to_thread(stack.copy_redis_files)
    stack.load.resume()
    await asyncio.sleep(chance.uniform(0.5, 1.0))
    stack.load.pause()
    await stack.load.wait_until_paused()
    await drain(stack)
    async with stack.store() as store:
        epoch = (await store.state(MAIN)).epoch
        stack.rewound_epochs.add(epoch)
        stack.signal("flusher", signal.SIGSTOP)  # otherwise it fences before an update is sent
        await asyncio.to_thread(stack.valkey.kill)
        await asyncio.to_thread(stack.restore_redis_files, older)
        await asyncio.to_thread(stack.valkey.start)
        stack.load.history.is_rewound = True
        stack.load.resume()
        await asyncio.sleep(chance.uniform(0.3, 0.6))
        stack.signal("flusher", signal.SIGCONT)

        async def is_reseeded() -> bool:
            state = await store.state(MAIN)
            return state.epoch > epoch and state.is_open

        await eventually_async(is_reseeded)
    stack.load.pause()
    await stack.load.wait_until_paused()
    stack.load.history.is_rewound = False


@fault()
async def everything_killed(stack: Stack, _: random.Random) -> None:
    """Kill all services and Redis."""
    for name in SERVICES:
        await asyncio.to_thread(stack.services[name].kill)
    await asyncio.to_thread(stack.valkey.kill)
    await asyncio.to_thread(stack.valkey.start)
    await stack.start()


async def _within(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass  # there was no matching traffic
