"""Waits until PostgreSQL has committed an action that Redis accepted.

The api uses it with ``SCOREBOARD_ACKNOWLEDGE=committed``. The flusher's trim writes the committed
position into the partition's meta and announces it; one reader per process and server then reads
the positions of all partitions with waiting callers (docs/decisions/0071). A position is only a
hint: after a failover the same epoch and seq may be another user's action. So the action is
submitted again, and one reply of Redis says whether it remembers this action and whether its seq is
committed (docs/decisions/0042).

Invariants: an action is reported as committed only if it is in PostgreSQL; every wait ends.
"""

import asyncio
from contextlib import suppress
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Final

import msgspec

from scoreboard.errors import OutcomeUnknown, ScoreboardError
from scoreboard.model import BOARDS_KEPT_MAX, Action, Partition, Receipt, partition_of
from scoreboard.runtime.recent import Recent
from scoreboard.runtime.settings import Settings
from scoreboard.store.boards import Boards
from scoreboard.store.cluster import Address
from scoreboard.store.dispatcher import Dispatcher
from scoreboard.store.keys import COMMITS_PREFIX, commits_channel
from scoreboard.store.partition_subscription import PartitionSubscription
from scoreboard.store.partitions import PartitionState

READ_EVERY_S: Final = 0.25
"""Interval of reads while callers wait and commits are announced: a message may be lost."""

POLL_S: Final = 0.01
"""Interval of reads while commits are not announced."""

_Servers = frozenset[Address | None]


class _PartitionWaiters:
    """The waiting callers of one partition, by seq, lowest first."""

    def __init__(self, partition: Partition) -> None:
        self.partition = partition
        self.epoch = 0
        self.waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._cancelled = 0
        self._highest = 0

    def add(self, order: int, seq: int, future: "asyncio.Future[None]") -> None:
        """Add a future that waits for a seq."""
        heappush(self.waiting, (seq, order, future))
        self._highest = max(self._highest, seq)

    def forget(self) -> None:
        """Count a cancelled future; remove cancelled ones once they are the majority."""
        self._cancelled += 1
        if 2 * self._cancelled > len(self.waiting):
            self.waiting = [one for one in self.waiting if not one[2].done()]
            heapify(self.waiting)
            self._cancelled = 0

    def move(self, state: PartitionState) -> None:
        """Wake callers whose seq is committed, and all after a reseed or on an older Redis."""
        is_new = bool(self.epoch) and state.epoch != self.epoch
        self.epoch = state.epoch
        while self.waiting and self.waiting[0][0] <= state.committed_seq:
            _wake(heappop(self.waiting)[2])
        if is_new or state.seq < self._highest:
            self._highest = 0
            while self.waiting:
                _wake(heappop(self.waiting)[2])


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


class CommitWaiter:
    """Waits for commits. Run ``run`` in a task group; call ``confirm`` from any task."""

    def __init__(self, settings: Settings, store: Boards, dispatcher: Dispatcher) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._limit_s = settings.commit_timeout_s
        self._due: dict[_Servers, asyncio.Event] = {}
        """One for each server with waiting callers, set when its positions are to be read at once.

        A server that is away must not hold up the callers of the others.
        """
        # In a cluster the channels are those of partitions, whose number is not known yet.
        boards = () if store.is_cluster else settings.boards
        self._announced = {COMMITS_PREFIX + board for board in boards}
        self._announcements = PartitionSubscription(
            settings,
            self._announced,
            name="api-commits",
            on_change=lambda _channel: self._wake_readers(),
            on_heard=lambda _channels: self._wake_readers(),
            on_lost=lambda _channels: self._wake_readers(),
        )
        self._partitions: Recent[int] = Recent(BOARDS_KEPT_MAX)
        self._waiters: dict[Partition, _PartitionWaiters] = {}
        self._order = count()
        self._is_needed = asyncio.Event()

    async def confirm(self, board: str, action: Action, receipt: Receipt) -> Receipt:
        """Wait until an action is committed to PostgreSQL; return its permanent answer.

        It differs from ``receipt`` if Redis lost the action and it was applied again.

        Raises OutcomeUnknown if that is not known within the time limit, or if Redis lost the
        action and refuses it now; repeating the request tells.
        """
        try:
            async with asyncio.timeout(self._limit_s):
                while not receipt.committed:
                    await self._wait_for_seq(board, action.user_id, receipt.seq)
                    again = await self._dispatcher.submit(board, action)
                    is_repeat = receipt.replayed and again.replayed
                    receipt = msgspec.structs.replace(again, replayed=is_repeat)
        except (TimeoutError, ScoreboardError) as error:
            self._partitions.pop(board, None)  # a reseed may have given the board another layout
            raise OutcomeUnknown(
                "Redis accepted the action, but its commit to the database is not confirmed: "
                "repeat the request"
            ) from error
        return receipt

    async def run(self) -> None:
        """Read committed positions while callers wait, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._announcements.run())
            while True:
                await self._is_needed.wait()
                self._is_needed.clear()
                for servers in self._waiting():
                    if servers not in self._due:
                        self._due[servers] = asyncio.Event()
                        tasks.create_task(self._read_positions(servers))

    async def _read_positions(self, servers: _Servers) -> None:
        """Read the positions of a server's partitions as long as callers wait for them."""
        due = self._due[servers]
        while some := self._waiting().get(servers):
            due.clear()
            for waiters in some:
                with suppress(ScoreboardError):  # each wait has its own limit
                    self._move(waiters, await self._store.state(waiters.partition))
            self._is_needed.set()  # partitions may have moved to another server
            channels = self._announced.intersection(self._channel(one.partition) for one in some)
            pause_s = READ_EVERY_S if self._announcements.hears(channels) else POLL_S
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await due.wait()
        del self._due[servers]

    def _waiting(self) -> dict[_Servers, list[_PartitionWaiters]]:
        """Return the partitions with callers, by server."""
        found: dict[_Servers, list[_PartitionWaiters]] = {}
        for waiters in list(self._waiters.values()):
            if waiters.waiting:
                channel = self._channel(waiters.partition)
                found.setdefault(self._announcements.servers_of((channel,)), []).append(waiters)
            else:
                del self._waiters[waiters.partition]
        return found

    def _wake_readers(self) -> None:
        for due in self._due.values():
            due.set()

    def _channel(self, partition: Partition) -> str:
        return commits_channel(partition, is_cluster=self._store.is_cluster)

    def _move(self, waiters: _PartitionWaiters, state: PartitionState) -> None:
        known = self._partitions.get(waiters.partition.board)
        if known is not None and (state.layout is None or state.layout.partitions != known):
            # A reseed may have changed the layout and so the partitions of users.
            del self._partitions[waiters.partition.board]
        waiters.move(state)

    async def _wait_for_seq(self, board: str, user_id: str, seq: int) -> None:
        """Wait until a seq is committed, or may belong to another action after a reseed."""
        partition = Partition(board, partition_of(user_id, await self._count(board)))
        channel = self._channel(partition)
        if channel not in self._announced and len(self._announced) < BOARDS_KEPT_MAX:
            # Others are read every READ_EVERY_S.
            self._announced.add(channel)
            self._announcements.want((channel,))
        waiters = self._waiters.setdefault(partition, _PartitionWaiters(partition))
        future = asyncio.get_running_loop().create_future()
        waiters.add(next(self._order), seq, future)
        self._is_needed.set()
        try:
            await future
        finally:
            if future.cancelled():
                waiters.forget()

    async def _count(self, board: str) -> int:
        known = self._partitions.get(board)
        if known is None:
            known = (await self._store.board(board)).layout.partitions
            self._partitions.keep(board, known)
        return known
