"""Flushers in the test's process and as processes, and checks of the invariants after them.

async with flushing(settings):                      # on the loop of the test
    await act(settings, Action("alice", "win:1", 10))
    await eventually_async(lambda: is_drained(settings))
check_invariants(settings)
"""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import psycopg
import redis

from flusher.service import Flusher
from scoreboard.ledger.boards import insert_board
from scoreboard.ledger.pool import connect
from scoreboard.model import DEFAULT_RULES, Action, Board, Partition, Receipt, Rules
from scoreboard.runtime.lifecycle import StopEvent
from scoreboard.runtime.settings import Settings
from scoreboard.store.client import make_client
from scoreboard.store.dispatcher import Dispatcher
from scoreboard.store.keys import GROUP, PartitionKeys
from scoreboard.store.store import Store
from tests.support.clients.forked import Forked
from tests.support.data.boards import open_board
from tests.support.eventually import eventually

MAIN = Partition("main")
KEYS = PartitionKeys(MAIN)


@asynccontextmanager
async def store_of(settings: Settings) -> AsyncIterator[Store]:
    client = make_client(settings, name="test")
    try:
        yield Store(client)
    finally:
        await client.aclose()


async def make_board(settings: Settings, board: Board | None = None) -> Board:
    """Create a board in PostgreSQL and open it, empty, in Redis."""
    board = board or Board()
    async with await connect(settings, name="test") as connection:
        await insert_board(connection, board)
    async with store_of(settings) as store:
        await open_board(store, board)
    return board


@asynccontextmanager
async def flushing(settings: Settings) -> AsyncIterator[Flusher]:
    """Run a flusher on this loop; stop it gracefully."""
    assert settings.flusher_metrics_port != 9102, "tests run at once: set another port"
    stop = StopEvent(5.0)
    flusher = Flusher(settings)
    task = asyncio.create_task(flusher.serve(stop))
    try:
        yield flusher
    finally:
        stop.set()
        await asyncio.wait_for(task, 30)


@asynccontextmanager
async def dispatching(settings: Settings) -> AsyncIterator[Dispatcher]:
    dispatcher = Dispatcher(settings)
    task = asyncio.create_task(dispatcher.run())
    try:
        yield dispatcher
    finally:
        dispatcher.close()
        await asyncio.wait_for(task, 30)


async def act(
    settings: Settings, *actions: Action, board: str = "main"
) -> list[Receipt | BaseException]:
    """Submit actions concurrently; return the receipt or error of each."""
    async with dispatching(settings) as dispatcher:
        return await asyncio.gather(
            *(dispatcher.submit(board, action) for action in actions), return_exceptions=True
        )


class FlusherProcess:
    """`python -m flusher` with its log in a file; the context manager kills the process."""

    def __init__(self, settings: Settings, log: Path, **environment: str) -> None:
        self.log = log
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("SCOREBOARD_")},
            "REDIS_URL": settings.redis_url.reveal(),
            "DATABASE_URL": settings.database_url.reveal(),
            "SCOREBOARD_BOARDS": ",".join(settings.boards),
            "SCOREBOARD_FLUSH_BATCH": str(settings.flush_batch),
            "SCOREBOARD_FLUSHER_METRICS_PORT": "0",
            "SCOREBOARD_LOG_LEVEL": "debug",
            **environment,
        }
        self._process: Forked | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = Forked("flusher", [], self._environment, output=log)

    @property
    def process(self) -> Forked:
        assert self._process is not None
        return self._process

    def kill(self) -> None:
        """Send SIGKILL, as if the machine were lost."""
        self.process.kill()
        self.process.wait()

    def stop(self, within_s: float = 30) -> int:
        """Send SIGTERM; return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def lines(self, event: str = "") -> list[dict[str, Any]]:
        """Return the log lines, or those of one event."""
        if not self.log.exists():
            return []
        lines = [
            json.loads(line)
            for line in self.log.read_text().splitlines()
            if line.startswith("{") and line.endswith("}")
        ]
        return [line for line in lines if not event or line["message"] == event]

    def wait_for(self, event: str, count: int = 1, within_s: float = 30) -> dict[str, Any]:
        """Wait until an event was logged ``count`` times; return the last one."""

        def logged() -> list[dict[str, Any]]:
            found = self.lines(event)
            assert len(found) >= count, self.log.read_text()[-3000:] if self.log.exists() else ""
            return found

        return eventually(logged, within_s)[-1]


def query(settings: Settings, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Run a statement in PostgreSQL; return its rows."""
    with psycopg.connect(settings.database_url.reveal(), autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), parameters)
        return cursor.fetchall() if cursor.description else []


def positions(settings: Settings, board: str = "main") -> dict[int, int]:
    """Return the committed seq of each partition."""
    return dict(query(settings, "SELECT part, seq FROM flush_state WHERE board = %s", board))


def is_drained(settings: Settings, board: str = "main", partitions: int = 1) -> bool:
    """Return whether PostgreSQL has all accepted actions and the stream is trimmed."""
    committed = positions(settings, board)
    with redis.Redis.from_url(settings.redis_url.reveal(), decode_responses=True) as client:
        for number in range(partitions):
            keys = PartitionKeys(Partition(board, number))
            if client.xlen(keys.events):
                return False
            if int(client.hget(keys.meta, "seq") or 0) != committed.get(number):
                return False
    return True


def check_invariants(
    settings: Settings,
    acknowledged: Sequence[tuple[str, str, int]] | None = None,
    *,
    board: str = "main",
    partitions: int = 1,
    rules: Rules = DEFAULT_RULES,
    is_resized: bool = False,
) -> None:
    """Assert I1, I2, I3 and I6 on a drained board; ``acknowledged`` are (user, action, delta).

    On a board that ``is_resized``, a new epoch may begin at a higher seq than the next one.
    """
    ledger = query(
        settings,
        "SELECT u.external_id, e.action_id, e.delta FROM score_events e"
        " JOIN users u ON u.id = e.user_id WHERE e.board = %s",
        board,
    )
    if acknowledged is not None:
        assert sorted(ledger) == sorted(acknowledged), "I1: the ledger is what was acknowledged"
    sums: dict[str, int] = {}
    for user, _, delta in ledger:
        sums[user] = sums.get(user, 0) + delta
    scores = dict(
        query(
            settings,
            "SELECT u.external_id, s.score FROM scores s JOIN users u ON u.id = s.user_id"
            " WHERE s.board = %s",
            board,
        )
    )
    assert scores == sums, "I2: scores are the sums of the ledger"
    shown: dict[str, int] = {}
    order: list[str] = []
    with redis.Redis.from_url(settings.redis_url.reveal(), decode_responses=True) as client:
        for number in range(partitions):
            keys = PartitionKeys(Partition(board, number))
            rows = client.zrange(keys.board, 0, -1, desc=True, withscores=True)
            shown |= {user: rules.unpack_score(int(packed)) for user, packed in rows}
            order += [user for user, _ in rows]
    assert shown == scores, "I3: Redis shows what PostgreSQL has"
    if partitions == 1:
        ranking = query(
            settings,
            "SELECT u.external_id FROM scores s JOIN users u ON u.id = s.user_id"
            " WHERE s.board = %s ORDER BY s.score * %s, s.reached_at, s.last_seq",
            board,
            1 if rules.order == "lowest" else -1,
        )
        assert order == [user for (user,) in ranking], "I3: equal scores are in order of arrival"
    for number in range(partitions):
        where = f"WHERE board = '{board}' AND part = {number}"
        taken = query(
            settings,
            f"SELECT epoch, seq FROM score_events {where}"
            f" UNION SELECT epoch, seq FROM rejected_events {where} AND reason <> 'resolved'"
            f" UNION SELECT epoch, seq FROM held_actions {where}"
            f" UNION SELECT epoch, seq FROM season_turns {where}",
        )
        dead = {seq for (seq,) in query(settings, f"SELECT seq FROM dead_events {where}")}
        for epoch in {epoch for epoch, _ in taken}:
            seqs = {seq for found, seq in taken if seq and (found == epoch or not is_resized)}
            first = min(seqs, default=1) if is_resized else 1
            gaps = set(range(first, max(seqs, default=0) + 1)) - seqs - dead
            assert not gaps, f"I6: seq is dense in epoch {epoch} of partition {number}"


def pending(settings: Settings) -> int:
    """Return the number of entries delivered and not acknowledged."""
    with redis.Redis.from_url(settings.redis_url.reveal(), decode_responses=True) as client:
        return client.xpending(KEYS.events, GROUP)["pending"]
