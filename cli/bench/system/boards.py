"""The throw-away boards of load tests: made, emptied, and found again after a killed run.

Two kinds exist. A *served* board is in SCOREBOARD_BOARDS of the services. Its name begins with
`bench-`, and its creation is marked in the audit log. After each run it is emptied under a fence
and opened under a new epoch, as by a reseed; it is not removed, because the services keep serving
it. A *script* board exists in Redis only, for loads of the scripts; no service knows it. A key
marks it, with the time at which its run was last alive.

Invariant: data of a board without its mark is never touched.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import redis.asyncio as aioredis
from redis.exceptions import RedisError

from cli.target import open_database, open_store
from scoreboard.errors import OperatorMistake, RedisUnavailable
from scoreboard.ledger.boards import select_board
from scoreboard.ledger.load_tests import (
    PREFIX,
    delete_board,
    delete_rows,
    has_rows,
    is_load_test_name,
    lock_load_test,
    require_owner,
    select_load_test_boards,
)
from scoreboard.ledger.migrations import require_schema
from scoreboard.model import SLOT_COUNT, Board, Partition, pack
from scoreboard.recovery.board_changes import create_board
from scoreboard.recovery.reseed import (
    SESSION,
    ReportProgress,
    find_unavailable,
    report_nothing,
    reseed,
    wait_until_drained,
)
from scoreboard.runtime.settings import Settings
from scoreboard.store.client import make_client
from scoreboard.store.keys import PartitionKeys, load_test_key
from scoreboard.store.rebuilding import PAGE
from scoreboard.store.store import Store

ALIVE_EVERY_S: Final = 1.0
DEAD_AFTER_S: Final = 5.0
"""A run that has not renewed its mark for so long was killed."""


def choose_board(settings: Settings, given: str | None) -> str:
    """Return the board of a load through the services.

    Raises OperatorMistake, which says how to make one.
    """
    served = [name for name in settings.boards if is_load_test_name(name)]
    if given is not None:
        if not is_load_test_name(given):
            raise OperatorMistake(
                f"Load tests run on boards whose names begin with {PREFIX}, never on {given}"
            )
        if given not in served:
            raise OperatorMistake(_how_to_serve(given))
        return given
    if not served:
        raise OperatorMistake(_how_to_serve(f"{PREFIX}load"))
    return served[0]


def _how_to_serve(name: str) -> str:
    return (
        f"The services do not serve board {name}: add it at the end of SCOREBOARD_BOARDS of the "
        "services and of this command, and restart them; or use --embedded for a system of its own"
    )


@asynccontextmanager
async def served_board(
    settings: Settings, name: str, *, actor: str, report: ReportProgress = report_nothing
) -> AsyncIterator[Board]:
    """Create a board that the services serve, or reuse an empty one; empty it at the end.

    Raises OperatorMistake if it has data, was not made by `scoreboard bench`, is used by another
    run, or if the login may not delete rows of the ledger.
    """
    async with open_database(settings) as connection, open_store(settings) as store:
        await require_schema(connection)
        await require_owner(connection)
        if not await lock_load_test(connection, name):
            raise OperatorMistake(f"Another load test runs on board {name}")
        if not await create_board(connection, Board(name), actor=actor, allow_load_tests=True):
            if name not in await select_load_test_boards(connection):
                raise OperatorMistake(
                    f"Board {name} was not created as one for load tests, and a load test would "
                    "delete its data: use another name"
                )
            if await has_rows(connection, name) or await _has_entries(store, name):
                raise OperatorMistake(
                    f"Board {name} has data of a run that was killed: run scoreboard bench clean"
                )
        elif await store.states(name):
            raise OperatorMistake(f"Redis has keys of board {name}, PostgreSQL does not know it")
        board = await select_board(connection, name)
        await _open(settings, board, actor=actor)
        try:
            yield board
        finally:
            # A stop must not leave the data of the run behind.
            emptying = asyncio.create_task(empty_board(settings, name, actor=actor, report=report))
            while not emptying.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait({emptying})
            emptying.result()


async def empty_board(
    settings: Settings, name: str, *, actor: str, report: ReportProgress = report_nothing
) -> int:
    """Fence a served board, delete its data and open it again; return the number of actions.

    Raises WaitTimeout if no flusher empties its stream, and the errors of `reseed`.
    """
    deleted = 0
    async with open_store(settings) as store, open_database(settings, **SESSION) as connection:

        async def drain(
            store: Store, partitions: Sequence[Partition], report: ReportProgress
        ) -> None:
            nonlocal deleted
            await wait_until_drained(store, partitions, report)
            deleted = await delete_rows(connection, name)

        board = await select_board(connection, name)
        numbers = range(board.layout.partitions)
        await reseed(store, connection, board, numbers, actor=actor, drain=drain, report=report)
    return deleted


async def remove_board(settings: Settings, name: str, *, actor: str) -> None:
    """Remove an emptied board that no service serves any more, from both stores."""
    async with (
        open_database(settings) as connection,
        make_client(settings, name="bench") as client,
    ):
        board = await select_board(connection, name)
        for number in range(board.layout.partitions):
            keys = PartitionKeys(Partition(name, number))
            await client.unlink(keys.meta, keys.board, keys.shadow, keys.events)
        await delete_board(connection, name, actor=actor)


async def clean(settings: Settings, *, actor: str, report: ReportProgress) -> list[str]:
    """Empty or remove what killed runs have left; return a line for each board.

    A board in the settings is emptied, one that no longer is there is removed. Boards of a run that
    still lives are not touched.
    """
    lines: list[str] = []
    async with open_database(settings) as connection:
        await require_schema(connection)
        await require_owner(connection)
        for name in await select_load_test_boards(connection):
            if not await lock_load_test(connection, name):
                lines.append(f"{name}: in use by a running load test")
                continue
            count = await empty_board(settings, name, actor=actor, report=report)
            if name in settings.boards:
                lines.append(f"{name}: emptied, {count} actions deleted")
            else:
                await remove_board(settings, name, actor=actor)
                lines.append(f"{name}: removed, {count} actions deleted")
    async with make_client(settings, name="bench") as client:
        try:
            async for mark in client.scan_iter(match=load_test_key(f"{PREFIX}*"), count=1000):
                name = str(mark).removeprefix("sb:{").partition(":")[0]
                if time.time() - float(await client.get(mark) or 0) < DEAD_AFTER_S:
                    lines.append(f"{name}: in use by a running load test")
                else:
                    await _unlink_all(client, name)
                    lines.append(f"{name}: removed from Redis")
        except RedisError as error:
            raise RedisUnavailable("Redis did not list the boards of load tests") from error
    return lines


@asynccontextmanager
async def script_board(
    settings: Settings, *, members: int, report: ReportProgress = report_nothing
) -> AsyncIterator[Board]:
    """Open a board in Redis only, with a number of members; remove all its keys at the end."""
    board = Board(f"{PREFIX}{secrets.token_hex(6)}")
    partition = Partition(board.name)
    token = f"bench:{secrets.token_hex(8)}"
    async with open_store(settings) as store, make_client(settings, name="bench") as client:
        state = await store.state(partition)
        if state.epoch:
            raise OperatorMistake(f"Board {board.name} exists")
        await client.set(load_test_key(board.name), int(time.time()))
        beating = asyncio.create_task(_stay_alive(client, board.name))
        try:
            await store.fence(partition, token, state)
            await store.restore(partition, token, [], first=True)
            for start in range(0, members, PAGE):
                page = [
                    (pack(1 + number % 100_000, SLOT_COUNT - 1 - number // 100_000), member(number))
                    for number in range(start, min(start + PAGE, members))
                ]
                await store.restore(partition, token, page, first=False)
                report("members", start, members)
            await store.open(
                partition, token, board, epoch=1, seq=0, stream_id="0-0", members=members
            )
            yield board
        finally:
            beating.cancel()
            removing = asyncio.create_task(_unlink_all(client, board.name))
            while not removing.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait({removing})
            removing.result()


def member(number: int) -> str:
    """Return the id of a member of a script board."""
    return f"member-{number:07d}"


async def _stay_alive(client: aioredis.Redis, board: str) -> None:
    while True:
        await asyncio.sleep(ALIVE_EVERY_S)
        with suppress(RedisError):
            await client.set(load_test_key(board), int(time.time()))


async def _unlink_all(client: aioredis.Redis, board: str) -> None:
    """Remove every key of a script board; its mark last, so that an interrupted run is repeated."""
    mark = load_test_key(board)
    async for key in client.scan_iter(match=f"sb:{{{board}:*", count=1000):
        if key != mark:
            await client.unlink(key)
    await client.unlink(mark)


async def _has_entries(store: Store, name: str) -> bool:
    states = await store.states(name)
    backlogs = [await store.backlog(Partition(name, number)) for number in states]
    return any(backlog.entries for backlog in backlogs)


async def _open(settings: Settings, board: Board, *, actor: str) -> None:
    """Open the partitions of a board that are not open."""
    async with open_store(settings) as store, open_database(settings, **SESSION) as connection:
        closed = await find_unavailable(store, board)
        if closed:
            await reseed(store, connection, board, closed, actor=actor)
