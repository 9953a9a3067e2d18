"""Load of the flusher: `flush` applies actions and waits until PostgreSQL has committed them.

The flusher is that of the system. A latency is from the answer of Redis to an action until the
flusher announces its COMMIT. Afterwards a burst, faster than the flusher, shows how fast it drains.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from cli.bench.generator.call_load import CallLoad
from cli.bench.generator.measurement import Measurement
from cli.bench.loads.script_load import dispatch_settings, submit_action
from cli.bench.system.session import Session
from scoreboard.errors import WaitTimeout
from scoreboard.model import Partition, Receipt
from scoreboard.store.dispatcher import Dispatcher
from scoreboard.store.keys import commits_channel
from scoreboard.store.partition_subscription import PartitionSubscription
from scoreboard.store.store import Store

FLUSH_PARTS: Final = ("flusher", "postgres", "redis")
BURST_TASKS: Final = 512
BURST_FIRST: Final = 10**9
"""Number of the first action of a burst, above those of any load before it."""

STALL_S: Final = 30.0
"""Longest time without a commit while actions wait."""

_POLL_S: Final = 0.02


class _Commits:
    """Follows the committed position, and records how long actions waited for it."""

    def __init__(self) -> None:
        self.seq = 0
        self.at_s = time.perf_counter()
        self.waiting: deque[tuple[int, int, float]] = deque()
        """Seq, number and time of answered actions; the seqs are almost in order."""
        self.measurement: Measurement | None = None

    def move(self, seq: int) -> None:
        now_s = time.perf_counter()
        if seq > self.seq:
            self.seq, self.at_s = seq, now_s
        while self.waiting and self.waiting[0][0] <= self.seq:
            _, number, answered_s = self.waiting.popleft()
            if self.measurement is not None:
                self.measurement.record(number, answered_s, now_s, "applied")


async def load_flusher(session: Session, board: str, *, users: int, burst: int) -> None:
    """Apply actions at a rate, then a burst; an operation is a committed action."""
    options = session.options
    commits = _Commits()
    dispatcher = Dispatcher(dispatch_settings(session.target.settings), name="bench")
    store = Store(session.redis)
    partition = Partition(board)

    async def submit(number: int) -> str:
        user = f"{board}.{number % users:06d}"
        found = await submit_action(dispatcher, board, user, number, session.run_id)
        if not isinstance(found, Receipt):
            return found
        commits.waiting.append((found.seq, number, time.perf_counter()))
        return "applied"

    load = CallLoad(
        submit,
        in_flight=options.connections,
        rate=options.rate,
        warm_up_s=options.warm_up_s,
        duration_s=options.duration_s,
    )
    found = commits.measurement = Measurement(load.measurement.window)
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(dispatcher.run())
        following = group.create_task(_follow(session, board, commits))
        snapshots = await load.run(session.read_cpu, session.stop, session.progress("flush"))
        await _wait_until_committed(store, partition, commits)
        drained = 0.0
        if burst and not session.stop.is_set():
            drained = await _drain(submit, store, partition, commits, burst)
        dispatcher.close()
        await serving
        following.cancel()
    for outcome, count in load.measurement.outcomes.items():
        if outcome != "applied":
            found.outcomes[outcome] += count
    found.window = load.measurement.window  # shorter if the run was stopped
    found.unsent, found.late = load.measurement.unsent, load.measurement.late
    session.add_result(
        "flush",
        board,
        found,
        snapshots,
        parts=FLUSH_PARTS,
        details={"drained in a burst": f"{drained:,.0f} actions/s" if drained else "not measured"},
    )


async def _follow(session: Session, board: str, commits: _Commits) -> None:
    """Read the announcements of commits until cancelled."""

    def take(message: bytes) -> None:
        with suppress(ValueError, IndexError):
            commits.move(int(message.split(b":")[1]))

    settings = dispatch_settings(session.target.settings)
    channel = commits_channel(Partition(board), is_cluster=Store(session.redis).is_cluster)
    await PartitionSubscription(
        settings,
        [channel],
        name="bench-commits",
        on_message=take,
        on_heard=lambda _channels: None,
        on_lost=lambda _channels: None,
    ).run()


async def _wait_until_committed(store: Store, partition: Partition, commits: _Commits) -> None:
    """Wait until everything in the stream is committed.

    Raises WaitTimeout if the flusher makes no progress.
    """
    while True:
        state = await store.state(partition)
        commits.move(state.committed_seq)
        if state.committed_seq >= state.seq:
            return
        if time.perf_counter() - commits.at_s > STALL_S:
            raise WaitTimeout(
                f"The flusher makes no progress: {state.seq - state.committed_seq} actions wait"
            )
        await asyncio.sleep(_POLL_S)


async def _drain(
    submit: Callable[[int], Awaitable[str]],
    store: Store,
    partition: Partition,
    commits: _Commits,
    count: int,
) -> float:
    """Apply ``count`` actions at once; return how many were committed per second."""
    commits.measurement = None
    numbers = iter(range(BURST_FIRST, BURST_FIRST + count))

    async def work() -> None:
        for number in numbers:
            await submit(number)

    before, began_s = (await store.state(partition)).committed_seq, time.perf_counter()
    commits.at_s = began_s
    async with asyncio.TaskGroup() as group:
        for _ in range(BURST_TASKS):
            group.create_task(work())
    await _wait_until_committed(store, partition, commits)
    return (commits.seq - before) / max(commits.at_s - began_s, 1e-9)
