"""Create and open the boards before `scoreboard up` starts serving.

An open board only gets its visibility from PostgreSQL. A board is reseeded if Redis is new or was
emptied, or if a killed reseed left it fenced.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from cli.administration import change_board, reseed_board
from cli.output import print_message, progress
from cli.target import open_database, operator_name
from scoreboard.errors import OperatorMistake
from scoreboard.ledger.audit import audited
from scoreboard.ledger.boards import publish_board, select_board
from scoreboard.model import Board
from scoreboard.recovery.board_changes import create_board
from scoreboard.recovery.reseed import ReportProgress
from scoreboard.runtime.settings import Settings

LOCK_WAIT_S: Final = 120.0
"""How long another process, such as the flusher after a rewind, may hold a board's lock."""

_POLL_S: Final = 0.1


async def create_boards(settings: Settings, *, is_public: bool) -> None:
    """Create the missing boards and set the privacy of all.

    Raises DatabaseUnavailable.
    """
    async with open_database(settings) as connection:
        for name in settings.boards:
            board = Board(name, is_public=is_public)
            actor = operator_name()
            await create_board(connection, board, actor=actor, allow_load_tests=True)
            if (await select_board(connection, name)).is_public == is_public:
                continue
            async with audited(connection) as trail:
                await publish_board(connection, name, is_public=is_public)
                await trail.insert(
                    actor=operator_name(),
                    action="board publish",
                    board=name,
                    detail={"public": is_public},
                )


def open_boards(settings: Settings, check: Callable[[], None]) -> None:
    """Open every closed board; ``check`` is called repeatedly and may raise.

    The flusher must be running: it commits what the streams still hold.

    Raises UnknownBoard, OperatorMistake, WaitTimeout, RedisUnavailable, DatabaseUnavailable.
    """
    for name in settings.boards:
        with progress() as show:

            def report(step: str, done: int, total: int) -> None:
                check()
                show(step, done, total)

            users = asyncio.run(_open_board(settings, name, report))
        if users:
            print_message(f"Board {name} was restored from PostgreSQL: {users} users")


async def _open_board(settings: Settings, name: str, report: ReportProgress) -> int:
    """Open one board; return the number of users restored, 0 if it was open."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            done = await reseed_board(
                settings,
                name,
                force=False,
                only_closed=True,
                actor=operator_name(),
                report=report,
            )
            await change_board(settings, name, actor=operator_name())  # copies the visibility
        except OperatorMistake:
            # If Redis has lost data, the flusher reseeds the board by itself under the same lock.
            report("wait", 0, 0)
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(_POLL_S)
        else:
            return done.users if done else 0
