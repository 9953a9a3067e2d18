"""What a cluster loses in a failover when updates are acknowledged after the primary's fsync alone.

    python -m tests.faults.loss --failovers 10

An action is lost if it was acknowledged and, after the repair, is neither in the ledger nor held.
The window of a loss lasts from the first such answer to the last one.
"""

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.checks import drain
from tests.faults.clients import ActionAnswers, Client, Load
from tests.faults.cluster_faults import CLUSTER_FAULTS
from tests.faults.cluster_stack import ClusterStack
from tests.faults.faults import Fault
from tests.faults.stack import started

KINDS = ("primary_killed", "primary_lost_with_its_host", "primary_isolated")

Answered = dict[tuple[str, str, str], float]
"""Board, user and action, with the monotonic time of the first acknowledgement, s."""


@dataclass(frozen=True)
class Loss:
    """What was acknowledged from the begin of a fault to its repair, and what of it is lost."""

    fault: str
    began_s: float
    acknowledged: int
    lost: Answered

    @property
    def window_s(self) -> float:
        """The time from the first lost answer to the last one; 0 without a loss."""
        return max(self.lost.values()) - min(self.lost.values()) if self.lost else 0.0


class LossClient(Client):
    """A client that repeats no known action: a repeat would count what was lost.

    It compares no answers, since those about lost actions may differ.
    """

    repeat_chance = 0.0
    answered: Answered

    def _acknowledge(
        self, answers: ActionAnswers, user: str, action: str, reply: dict[str, Any]
    ) -> None:
        del reply
        answers.new_score = 0
        self.answered.setdefault((self._history.board, user, action), time.monotonic())


class Meter:
    """A running cluster under load, whose losses are measured. Created by ``measuring``."""

    def __init__(self, stack: ClusterStack, load: Load, answered: Answered) -> None:
        self.stack = stack
        self._load = load
        self._answered = answered
        self._lost: set[tuple[str, str, str]] = set()

    async def inflict(self, fault: Fault, chance: random.Random) -> Loss:
        """Inflict a fault, wait until both stores agree, and return what is lost."""
        await asyncio.sleep(chance.uniform(0.5, 1.0))  # pace: the fault meets a load
        before, began_s = len(self._answered), time.monotonic()
        await fault.inflict(self.stack, chance)
        self._load.check()
        self._load.pause()
        await self._load.wait_until_paused()
        await drain(self.stack, 60, self.stack.partitions)
        lost = self._answered.keys() - self._counted() - self._lost
        self._lost |= lost
        acknowledged = len(self._answered) - before
        self._load.resume()
        return Loss(fault.name, began_s, acknowledged, {one: self._answered[one] for one in lost})

    def _counted(self) -> set[tuple[str, str, str]]:
        with self.stack.sql() as connection:
            rows = connection.execute(
                "SELECT e.board, u.external_id, e.action_id FROM score_events e"
                " JOIN users u ON u.id = e.user_id"
            ).fetchall()
        return set(rows)


@asynccontextmanager
async def measuring(
    folder: Path, *, acknowledge: str = "fsync", clients: int = 24
) -> AsyncIterator[Meter]:
    """Run a cluster under load.

    Raises AssertionError at the end if the stores differ.
    """
    answered: Answered = {}
    stack = ClusterStack(folder, acknowledge=acknowledge)
    async with started(stack):
        load = Load(
            folder,
            stack.api_port,
            stack.token,
            clients=clients,
            pace_s=0.02,
            boards=stack.boards,
            make=type("Counted", (LossClient,), {"answered": answered}),
        )
        async with load:
            yield Meter(stack, load, answered)
            await load.finish()
        await drain(stack, 60, stack.partitions)
        found = await stack.verify()
        assert not found, found


async def measure(
    folder: Path, *, failovers: int, seed: int = 1, acknowledge: str = "fsync"
) -> list[Loss]:
    """Inflict each kind of failover a number of times; return what each has lost."""
    chance = random.Random(seed)
    async with measuring(folder, acknowledge=acknowledge) as meter:
        return [await meter.inflict(CLUSTER_FAULTS[kind], chance) for kind in KINDS * failovers]


def describe(losses: list[Loss]) -> str:
    """Return a line for each kind of failover."""
    lines: list[str] = []
    for kind in KINDS:
        own = [loss for loss in losses if loss.fault == kind]
        acknowledged = sum(loss.acknowledged for loss in own)
        most = max(len(loss.lost) for loss in own)
        window_ms = 1000 * max(loss.window_s for loss in own)
        lines.append(
            f"{kind:27} {len(own)} failovers: lost {sum(len(loss.lost) for loss in own)} of "
            f"{acknowledged} acknowledged, at most {most} within {window_ms:.0f} ms"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--failovers", type=int, default=5, help="of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--acknowledge", default="fsync")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="scoreboard-loss-"))
    losses = asyncio.run(
        measure(
            folder,
            failovers=options.failovers,
            seed=options.seed,
            acknowledge=options.acknowledge,
        )
    )
    sys.stdout.write(f"acknowledge={options.acknowledge}\n{describe(losses)}\n")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
