"""A campaign: load, faults in a seeded order, and a check of the invariants after every few.

    python -m tests.faults.campaign --seed 7 --minutes 15

prints the numbers of faults, of acknowledged, lost and doubled actions, and the time of recovery.
The exit code is 1 if an invariant was violated. (`make faults`)
"""

import argparse
import asyncio
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cli.embedded.servers import EmbeddedValkey
from scoreboard.model import DEFAULT_RULES, NO_LIMITS, Limits, Rules
from tests.faults.checks import check, drain
from tests.faults.clients import Load
from tests.faults.faults import FAULTS, Fault
from tests.faults.operators import Operator
from tests.faults.stack import Stack, running_stack
from tests.faults.viewer import Viewer

CHECK_EVERY = 5
"""Faults between two checks; a check reads both stores completely."""

RECOVERY_WITHIN_S = 15.0
"""The limit of the time from the end of a fault to the next acknowledged action."""


@dataclass
class Report:
    """The result of a campaign."""

    faults: list[str] = field(default_factory=list)
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
                f"recovery time         {statistics.median(waits):.2f} s (median)",
                f"longest recovery      {waits[-1]:.2f} s",
                *(f"VIOLATED {sentence}" for sentence in self.violations),
            ]
        )


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
    report, chance = Report(), random.Random(seed)
    ends_at = time.monotonic() + seconds
    async with running_stack(
        folder, source=source, valkey=valkey, rules=rules, limits=limits
    ) as stack:
        viewer = Viewer(stack.ws_port)
        watching = asyncio.create_task(viewer.run())
        load = Load(
            folder, stack.api_port, stack.token, clients=clients, pace_s=pace_s, rules=rules
        )
        operator = Operator(stack, load.history, seed=seed)
        load.add(operator)
        try:
            stack.load = load
            async with load:
                for number, fault in enumerate(schedule, 1):
                    if time.monotonic() > ends_at:
                        break
                    await _inflict(stack, load, fault, chance, report)
                    if number % CHECK_EVERY == 0:
                        await _rest(stack, load, viewer, report, settle_s)
                await load.finish()
                await drain(stack, settle_s)
                report.violations = await check(stack, load.history, viewer)
        except AssertionError as error:
            report.violations = [*load.history.violations, f"while paused: {error}"]
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        report.acknowledged = load.history.acknowledged
        report.calls, report.unknown = load.history.calls, load.history.unknown
        report.frames = viewer.frames
        report.acts, report.resumed = operator.performed, operator.resumed
        report.held = sum(answers.is_held for answers in load.history.actions.values())
    return report


async def _inflict(
    stack: Stack, load: Load, fault: Fault, chance: random.Random, report: Report
) -> None:
    await asyncio.sleep(chance.uniform(0.1, 0.6))
    if fault.needs_rest:
        load.pause()
        await load.wait_until_paused()
        await drain(stack)
    acknowledged = load.history.acknowledged
    await fault.inflict(stack, chance)
    load.resume()
    load.check()
    began = time.monotonic()
    if not fault.needs_rest:
        acknowledged = load.history.acknowledged
    while load.history.acknowledged == acknowledged:
        load.check()
        if time.monotonic() - began > RECOVERY_WITHIN_S:
            raise AssertionError(
                f"nothing is acknowledged {RECOVERY_WITHIN_S} s after {fault.name}"
            )
        await asyncio.sleep(0.01)
    report.recoveries_s.append(time.monotonic() - began)
    report.faults.append(fault.name)


async def _rest(stack: Stack, load: Load, viewer: Viewer, report: Report, settle_s: float) -> None:
    load.pause()
    await load.wait_until_paused()
    await drain(stack, settle_s)
    found = await check(stack, load.history, viewer)
    if found:
        raise AssertionError("; ".join(found))
    load.resume()


def endless(seed: int) -> list[Fault]:
    """Return a long schedule in which every fault occurs before any is repeated."""
    chance = random.Random(seed)
    schedule: list[Fault] = []
    for _ in range(100):
        kinds = list(FAULTS.values())
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
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="scoreboard-faults-"))
    report = asyncio.run(
        run_campaign(
            folder,
            endless(options.seed),
            seed=options.seed,
            seconds=options.minutes * 60,
            clients=options.clients,
            pace_s=options.pace_ms / 1000,
            rules=options.rules,
            limits=options.limits,
        )
    )
    sys.stdout.write(f"seed                  {options.seed}\n{report}\n")
    if report.violations:
        sys.stdout.write(f"the files are kept in {folder}\n")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
