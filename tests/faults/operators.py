"""An operator who corrects, voids, bans and undoes amid the load and the faults.

Each act that fails because a server is away is completed before the next one, as an operator would
do with `scoreboard act resume`.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg

from scoreboard.errors import ClientError, ScoreboardError
from scoreboard.ledger import pool as postgres
from scoreboard.ledger.acts import ActFilter, select_acts
from scoreboard.ledger.boards import select_board
from scoreboard.model import NO_LIMITS, Board
from scoreboard.moderation.acts import Done, Moderator
from scoreboard.moderation.plans import (
    BanChange,
    Correction,
    Release,
    Request,
    Undo,
    Void,
    WindowVoid,
)
from tests.faults.clients import History

if TYPE_CHECKING:
    from tests.faults.stack import Stack

ACT_LIMIT_S = 15.0
COMPLETE_S = 40.0
RETRY_S = 0.2


class Operator:
    """Performs random acts until it is stopped; a part of the load."""

    def __init__(self, stack: "Stack", histories: Sequence[History], *, seed: int) -> None:
        self._stack = stack
        self._histories = {history.board: history for history in histories}
        self._random = random.Random(seed)
        self.is_paused = False
        self.performed = 0
        self.resumed = 0

    async def run(self, going: asyncio.Event, stop: asyncio.Event, pace_s: float) -> None:
        """Act until ``stop``; ``going`` pauses."""
        while not stop.is_set():
            while not going.is_set():  # it may be cleared again before this task runs
                self.is_paused = True
                await going.wait()
            self.is_paused = False
            await self._act()
            await asyncio.sleep(pace_s * 5)
        await self._end_bans()

    async def close(self) -> None:
        """Do nothing: each act has its own connections."""

    async def _act(self) -> None:
        user = f"player-{self._random.randrange(60)}"
        board = self._random.choice(self._stack.boards)
        if board.limits != NO_LIMITS and self._random.randrange(20) == 0:
            await self._void_held(board)
            return
        request = await self._choose(board, user)

        async def perform(moderator: Moderator) -> None:
            plan = await moderator.plan(request)
            done = await moderator.perform(request, plan, reason="campaign")
            self.performed += 1
            _require_commit(done)

        try:
            await self._moderate(board, perform)
        except ClientError:
            return  # it does not apply to this user now
        except (ScoreboardError, OSError, TimeoutError, psycopg.Error):
            await self._complete(board, user)

    async def _void_held(self, board: Board) -> None:
        """Void a held action, unless it is decided already or the database is away."""
        found = await self._column(
            "SELECT id FROM held_actions WHERE board = %s ORDER BY random() LIMIT 1", board
        )

        async def void(moderator: Moderator) -> None:
            await moderator.void_held(int(found[0]), reason="campaign")
            self.performed += 1

        if found:
            with suppress(ScoreboardError, OSError, TimeoutError, psycopg.Error):
                await self._moderate(board, void)

    async def _choose(self, board: Board, user: str) -> Request:  # noqa: PLR0911 (one per kind)
        match self._random.randrange(8 if board.limits != NO_LIMITS else 7):
            case 0 | 1:
                return Correction(user, self._random.choice([-3, -2, -1, 1, 2, 3]))
            case 2:
                history = self._histories[board.name]
                own = [action for name, action in history.actions if name == user]
                return Void(user, self._random.choice(own) if own else "win:none")
            case 3:
                return BanChange(user, "ban")
            case 4:
                banned = await self._banned(board)
                return BanChange(self._random.choice(banned) if banned else user, "unban")
            case 5:
                now = datetime.now(UTC)
                since = now - timedelta(seconds=self._random.uniform(0.1, 3))
                return WindowVoid(user, since, now)
            case 7:
                held = await self._column(
                    "SELECT id FROM held_actions WHERE board = %s ORDER BY random() LIMIT 1", board
                )
                return Release(int(held[0]) if held else 1, self._random.random() < 0.5)
            case _:
                acts = await self._column(
                    "SELECT id FROM acts WHERE board = %s ORDER BY at DESC LIMIT 20", board
                )
                return Undo(self._random.choice(acts) if acts else "none")

    async def _complete(self, board: Board, user: str) -> None:
        """Resume what is pending, and copy the ban of the user, until both succeed."""

        async def complete(moderator: Moderator) -> None:
            for one in await self._pending(board):
                with suppress(ClientError):
                    _require_commit(await moderator.resume(one))
            # One that was refused is no longer pending. A reseed may hold the operators' lock for
            # longer than an act waits for it.
            if await self._pending(board):
                raise TimeoutError
            await moderator.mirror_ban(user)
            last = await self._column(
                "SELECT u.external_id FROM users u JOIN acts a ON a.user_id = u.id"
                " WHERE a.kind LIKE '%%ban' AND a.board = %s ORDER BY a.at DESC LIMIT 1",
                board,
            )
            for one in last:
                await moderator.mirror_ban(one)

        await self._until_done(board, complete)
        self.resumed += 1

    async def _end_bans(self) -> None:
        """Unban everyone, so that the boards show all users again."""
        for board in self._stack.boards:

            async def unban(moderator: Moderator, board: Board = board) -> None:
                for user in await self._banned(board):
                    request = BanChange(user, "unban")
                    await moderator.perform(request, await moderator.plan(request), reason="end")

            await self._until_done(board, unban)

    async def _banned(self, board: Board) -> list[str]:
        return await self._column(
            "SELECT u.external_id FROM bans b JOIN users u ON u.id = b.user_id WHERE b.board = %s",
            board,
        )

    async def _until_done(self, board: Board, use: Callable[[Moderator], Awaitable[None]]) -> None:
        deadline = time.monotonic() + COMPLETE_S
        while time.monotonic() < deadline:
            try:
                await self._moderate(board, use)
            except (ScoreboardError, OSError, TimeoutError, psycopg.Error):
                await asyncio.sleep(RETRY_S)
            else:
                return
        self._histories[board.name].violations.append("I1: an act cannot be completed")

    async def _moderate(self, board: Board, use: Callable[[Moderator], Awaitable[None]]) -> None:
        async with asyncio.timeout(ACT_LIMIT_S):
            connection = await postgres.connect(self._stack.settings, name="operator",
                                                autocommit=True)  # fmt: skip
            try:
                async with self._stack.store() as store:
                    found = await select_board(connection, board.name)
                    await use(
                        Moderator(store, connection, found, actor="operator", stream_cap=100_000)
                    )
            finally:
                await connection.close()

    async def _pending(self, board: Board) -> list[str]:
        connection = await postgres.connect(self._stack.settings, name="operator")
        try:
            found = await select_acts(
                connection, ActFilter(state="pending", board=board.name), limit=100
            )
        finally:
            await connection.close()
        return [one.id for one in found]

    async def _column(self, statement: str, board: Board) -> list[str]:
        try:
            with self._stack.sql() as connection:
                rows = connection.execute(statement.encode(), [board.name]).fetchall()
                return [row[0] for row in rows]
        except psycopg.OperationalError:
            return []


def _require_commit(done: Done) -> None:
    """Raise TimeoutError if an act can still be lost, with a primary: it is to be resumed."""
    if not done.is_committed:
        raise TimeoutError


def acts_count_once(connection: psycopg.Connection) -> Iterable[str]:
    """I1 for acts: each that was not refused has one ledger row, with its points and audit row."""
    rows = connection.execute(
        "SELECT a.id FROM (SELECT * FROM acts WHERE refused_at IS NULL AND delta <> 0) a "
        "FULL JOIN (SELECT * FROM score_events WHERE action_id LIKE 'act:%') e "
        "ON e.action_id = 'act:' || a.id AND e.board = a.board AND e.user_id = a.user_id "
        "WHERE a.delta IS DISTINCT FROM e.delta"
    ).fetchall()
    if rows:
        yield f"I1: {len(rows)} acts and their ledger rows differ, such as {rows[0]}"
    missing = connection.execute(
        "SELECT a.id FROM acts a"
        " WHERE NOT EXISTS (SELECT FROM audit_log l WHERE l.detail->>'act' = a.id)"
    ).fetchall()
    if missing:
        yield f"I1: {len(missing)} acts have no audit row, such as {missing[0]}"
