"""A campaign: load, faults in a seeded order, and a check of the invariants after every few.

    python -m tests.faults.campaign --seed 7 --minutes 15

prints the numbers of faults, of acknowledged, lost and doubled actions, and the time of recovery.
The exit code is 1 if an invariant was violated. (`make faults`)

With ``--cluster`` it runs on a cluster, with several boards and the faults of
``tests.faults.cluster_faults``, and then measures what ``fsync`` loses in a failover
(``tests.faults.loss``). With ``--sentinel`` it runs on servers with sentinels, with the faults of
``tests.faults.sentinel_faults``.
"""

import argparse
import asyncio
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from cli.embedded.servers import EmbeddedValkey
from flusher.partition import CHECK_EVERY_S
from scoreboard.model import DEFAULT_RULES, NO_LIMITS, Board, Limits, Rules
from tests.faults.checks import check, drain, rewinds
from tests.faults.clients import Load
from tests.faults.cluster_faults import CLUSTER_FAULTS
from tests.faults.cluster_stack import BOARDS, ClusterStack
from tests.faults.faults import FAULTS, Fault
from tests.faults.loss import describe, measure
from tests.faults.operators import Operator
from tests.faults.replicated_stack import ReplicatedStack
from tests.faults.sentinel_faults import SENTINEL_FAULTS
from tests.faults.sentinel_stack import BOARDS as SENTINEL_BOARDS
from tests.faults.sentinel_stack import SentinelStack
from tests.faults.stack import LAYOUT, Stack, started
from tests.faults.viewer import Viewer

FAULTS_PER_CHECK = 5
"""Faults between two checks; a check reads both stores completely."""

RECOVERY_WITHIN_S = 15.0
"""The limit of the time from the end of a fault to the next acknowledged action."""


REPAIR_BEGINS_S = 2 * CHECK_EVERY_S
"""The longest time until the flusher compares its position with that of Redis."""


@dataclass
class Report:
    """The result of a campaign."""

    faults: list[str] = field(default_factory=list)
    failovers: int = 0
    rewinds: int = 0
    changed: int = 0
    acknowledged: int = 0
    calls: int = 0
    unknown: int = 0
    frames: int = 0
    acts: int = 0
    resumed: int = 0
    held: int = 0
    recoveries_s: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        waits = sorted(self.recoveries_s) or [0.0]
        kinds = {"I1": 0, "I2": 0, "I5": 0}
        for sentence in self.violations:
            kinds[sentence[:2]] = kinds.get(sentence[:2], 0) + 1
        return "\n".join(
            [
                f"faults                {len(self.faults)} ({len(set(self.faults))} kinds)",
                f"actions acknowledged  {self.acknowledged} in {self.calls} calls",
                f"acts                  {self.acts}, {self.resumed} interrupted and resumed",
                f"held                  {self.held}",
                f"outcomes unknown      {self.unknown}, each repeated until known",
                f"lost                  {kinds['I1']}",
                f"doubled               {kinds['I2'] + kinds['I5']}",
                f"boards seen           {self.frames}",
                *self._of_failovers(),
                f"recovery time         {statistics.median(waits):.2f} s (median)",
                f"longest recovery      {waits[-1]:.2f} s",
                *(f"VIOLATED {sentence}" for sentence in self.violations),
            ]
        )

    def _of_failovers(self) -> list[str]:
        if not self.failovers:
            return []
        return [
            f"failovers             {self.failovers}",
            f"rewinds repaired      {self.rewinds}, of what was committed and not acknowledged",
            f"answers changed       {self.changed}, of actions with an unknown outcome",
        ]


async def run_campaign(
    folder: Path,
    schedule: Sequence[Fault],
    *,
    seed: int = 1,
    seconds: float = 3600,
    clients: int = 12,
    pace_s: float = 0.02,
    source: Path | None = None,
    settle_s: float = 60,
    valkey: EmbeddedValkey | None = None,
    rules: Rules = DEFAULT_RULES,
    limits: Limits = NO_LIMITS,
) -> Report:
    """Run the faults of a schedule under load, one after another, until the time ends."""
    board = with_rules(Board("main", LAYOUT), rules, limits)
    stack = Stack(folder, source=source, valkey=valkey, boards=[board])
    return await run_on(
        stack,
        folder,
        schedule,
        seed=seed,
        seconds=seconds,
        clients=clients,
        pace_s=pace_s,
        settle_s=settle_s,
    )


async def run_on(
    stack: Stack,
    folder: Path,
    schedule: Sequence[Fault],
    *,
    seed: int = 1,
    seconds: float = 3600,
    clients: int = 12,
    pace_s: float = 0.02,
    settle_s: float = 60,
) -> Report:
    """Start a stack and run a campaign on it."""
    report, chance = Report(), random.Random(seed)
    ends_at = time.monotonic() + seconds
    async with started(stack):
        load = Load(
            folder,
            stack.api_port,
            stack.token,
            clients=clients,
            pace_s=pace_s,
            boards=stack.boards,
        )
        operator = Operator(stack, load.histories, seed=seed)
        load.add(operator)
        if len(stack.boards) > 1:
            load.add_joint_client()
        campaign = _Campaign(stack, load, chance, report, settle_s)
        watching = [asyncio.create_task(viewer.run()) for viewer in campaign.viewers]
        try:
            stack.load = load
            async with load:
                for number, fault in enumerate(schedule, 1):
                    if time.monotonic() > ends_at:
                        break
                    await campaign.inflict(fault)
                    if number % FAULTS_PER_CHECK == 0:
                        await campaign.rest()
                await load.finish()
                report.violations = await campaign.check()
                if isinstance(stack, ReplicatedStack):
                    report.violations += await stack.verify()
        except AssertionError as error:
            found = [one for history in load.histories for one in history.violations]
            report.violations = [*found, f"while paused: {error}"]
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
        for history in load.histories:
            report.acknowledged += history.acknowledged
            report.calls += history.calls
            report.changed += history.changed
            report.unknown += history.unknown
            report.held += sum(answers.is_held for answers in history.actions.values())
        report.frames = sum(viewer.frames for viewer in campaign.viewers)
        report.acts, report.resumed = operator.performed, operator.resumed
        if isinstance(stack, ReplicatedStack):
            report.failovers = stack.failovers
            with stack.sql() as connection:
                report.rewinds = len(rewinds(connection))
    return report


class _Campaign:
    """A running stack with its load and viewers."""

    def __init__(
        self, stack: Stack, load: Load, chance: random.Random, report: Report, settle_s: float
    ) -> None:
        self.viewers = [Viewer(stack.ws_port, board.name) for board in stack.boards]
        self._stack = stack
        self._load = load
        self._chance = chance
        self._report = report
        self._settle_s = settle_s
        for history in load.histories:
            history.may_rewind = isinstance(stack, ReplicatedStack)

    async def inflict(self, fault: Fault) -> None:
        """Inflict a fault and wait until actions of every board are acknowledged again."""
        stack, load = self._stack, self._load
        await asyncio.sleep(self._chance.uniform(0.1, 0.6))
        if fault.needs_rest:
            load.pause()
            await load.wait_until_paused()
            await self._drain(60)
        acknowledged = self._acknowledged()
        await fault.inflict(stack, self._chance)
        load.resume()
        load.check()
        began = time.monotonic()
        if not fault.needs_rest:
            acknowledged = self._acknowledged()
        while waiting := [
            board for board, n in self._acknowledged().items() if n == acknowledged[board]
        ]:
            load.check()
            if time.monotonic() - began > RECOVERY_WITHIN_S:
                raise AssertionError(
                    f"nothing is acknowledged on {', '.join(waiting)} {RECOVERY_WITHIN_S} s after "
                    f"{fault.name}"
                )
            await asyncio.sleep(0.01)
        self._report.recoveries_s.append(time.monotonic() - began)
        self._report.faults.append(fault.name)

    async def rest(self) -> None:
        """Pause the load and compare both stores with the answers.

        Raises AssertionError with every violation.
        """
        self._load.pause()
        await self._load.wait_until_paused()
        found = await self.check()
        if found:
            raise AssertionError("; ".join(found))
        self._load.resume()

    async def check(self) -> list[str]:
        """Wait until everything is committed; return every violation."""
        found = await self._compare()
        if found and isinstance(self._stack, ReplicatedStack):
            # The flusher may not have noticed yet that a promoted replica lacked what is committed.
            await asyncio.sleep(REPAIR_BEGINS_S)
            found = await self._compare()
        return found

    async def _compare(self) -> list[str]:
        await self._drain(self._settle_s)
        found: list[str] = []
        for history, viewer in zip(self._load.histories, self.viewers, strict=True):
            found += await check(self._stack, history, viewer)
        return list(dict.fromkeys(found))

    async def _drain(self, within_s: float) -> None:
        await drain(self._stack, within_s, self._stack.partitions)

    def _acknowledged(self) -> dict[str, int]:
        return {history.board: history.acknowledged for history in self._load.histories}


def with_rules(board: Board, rules: Rules, limits: Limits) -> Board:
    """Return a board with other rules and limits."""
    layout = msgspec.structs.replace(board.layout, rules=rules)
    return msgspec.structs.replace(board, layout=layout, limits=limits)


def endless(seed: int, faults: Mapping[str, Fault] = FAULTS) -> list[Fault]:
    """Return a long schedule in which every fault occurs before any is repeated."""
    chance = random.Random(seed)
    schedule: list[Fault] = []
    for _ in range(100):
        kinds = list(faults.values())
        chance.shuffle(kinds)
        schedule += kinds
    return schedule


def main() -> int:
    """Run a campaign from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--pace-ms", type=float, default=25)
    parser.add_argument(
        "--rules",
        type=Rules.parse,
        default=DEFAULT_RULES,
        help="such as best:lowest:0:2147483647:nobody:stated",
    )
    parser.add_argument("--limits", type=Limits.parse, default=NO_LIMITS, help="such as 45:400:60")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--cluster", action="store_true", help="run on a cluster")
    kind.add_argument("--sentinel", action="store_true", help="run on servers with sentinels")
    parser.add_argument(
        "--losses", type=int, default=3, help="failovers of each kind to measure losses with"
    )
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="scoreboard-faults-"))
    run = {
        "seed": options.seed,
        "seconds": options.minutes * 60,
        "clients": options.clients,
        "pace_s": options.pace_ms / 1000,
    }
    if options.cluster or options.sentinel:
        plain = BOARDS if options.cluster else SENTINEL_BOARDS
        boards = [with_rules(board, options.rules, options.limits) for board in plain]
        make = ClusterStack if options.cluster else SentinelStack
        faults = CLUSTER_FAULTS if options.cluster else SENTINEL_FAULTS
        stack = make(folder, boards=boards)
        report = asyncio.run(run_on(stack, folder, endless(options.seed, faults), **run))
    else:
        report = asyncio.run(
            run_campaign(
                folder, endless(options.seed), rules=options.rules, limits=options.limits, **run
            )
        )
    sys.stdout.write(f"seed                  {options.seed}\n{report}\n")
    if options.cluster and options.losses:
        place = folder / "losses"
        place.mkdir()
        losses = asyncio.run(measure(place, failovers=options.losses, seed=options.seed))
        sys.stdout.write(f"with acknowledge=fsync:\n{describe(losses)}\n")
    if report.violations:
        sys.stdout.write(f"the files are kept in {folder}\n")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
