"""`scoreboard repair`: correct Redis where it differs from PostgreSQL."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
from msgspec import Struct

from cli.commands.verify import print_verdict, read_verdict
from cli.output import confirm, print_json, print_message, progress
from cli.target import (
    board_option,
    board_or_default,
    data_dir_option,
    json_option,
    load_settings_to_change,
    open_database,
    open_store,
    operator_name,
    yes_option,
)
from scoreboard.errors import OperatorMistake
from scoreboard.ledger.boards import select_board
from scoreboard.ledger.pool import Connection
from scoreboard.model import Board
from scoreboard.recovery.repair import Change
from scoreboard.recovery.repair import repair as correct_scores
from scoreboard.recovery.reseed import SESSION, ReportProgress
from scoreboard.recovery.reseed import reseed as rebuild
from scoreboard.recovery.verify import Drift, Finding, Verdict
from scoreboard.runtime.settings import Settings
from scoreboard.store.store import Store

RESEED_ABOVE: Final = 5000
"""With more differing users than this, a reseed is faster than single corrections."""

RESEED_CHECKS: Final = frozenset({"epoch", "state", "rewind", "layout"})
"""Findings that only a reseed of the partition repairs."""


SETTLE_S: Final = 30.0
"""Longest time for the flusher to record the corrections of a repair."""

SETTLING: Final = frozenset({"chain"})
"""Findings that end when the flusher has recorded the corrections."""

_POLL_S: Final = 0.5


class Repair(Struct, frozen=True):
    """The result of a repair, or the plan of a dry run.

    ``left`` are the findings after the repair, and ``differing`` the users.
    """

    board: str
    changes: tuple[Drift | Change, ...] = ()
    reseeded: tuple[int, ...] = ()
    left: tuple[Finding, ...] = ()
    is_dry: bool = False
    differing: tuple[Drift, ...] = ()


@click.command()
@board_option
@click.option("--dry-run", is_flag=True, help="Show the changes without making them.")
@yes_option
@json_option
@data_dir_option
def repair(*, board: str | None, dry_run: bool, yes: bool, as_json: bool, data_dir: Path) -> int:
    """Correct Redis where it differs from PostgreSQL.

    The command verifies all users and shows the differences. Up to 5,000 users are corrected while
    updates continue. If there are more, or if Redis has lost data, the partition is reseeded, and
    its updates are answered with 503 until that is done. If there were other findings, the command
    verifies again, for at most 30 seconds: some end when the flusher has recorded the corrections.
    Exit 1 if differences remain.

    \b
    Examples:
      scoreboard repair --dry-run
      scoreboard repair --yes
    """  # noqa: D301
    settings = load_settings_to_change(data_dir)
    board = board_or_default(settings, board)
    with progress() as report:
        verdict = asyncio.run(read_verdict(settings, board, None, report))
    if not as_json:
        print_verdict(verdict)
    numbers, drifted = _plan(verdict)
    left = tuple(one for one in verdict.findings if one.check not in RESEED_CHECKS)
    if not numbers and not drifted:
        print_message(f"Board {board}: nothing to repair")
        done = Repair(board, left=left, is_dry=dry_run)
    elif dry_run:
        _print_plan(numbers, drifted)
        done = Repair(board, drifted, numbers, left, is_dry=True)
    else:
        _print_plan(numbers, drifted)
        if not yes:
            confirm("Continue?")
        with progress() as report:
            changes = asyncio.run(_repair(settings, board, numbers, drifted, report))
        print_message(f"{len(changes)} users corrected, {len(numbers)} partitions reseeded")
        differing: tuple[Drift, ...] = ()
        if left:
            with progress() as report:
                after = asyncio.run(_verify_settled(settings, board, report))
            left, differing = after.findings, after.drifted
            if not as_json:
                print_message("After the repair:" if left or differing else "No finding is left")
                print_verdict(after)
        done = Repair(board, tuple(changes), numbers, left, differing=differing)
    if as_json:
        print_json(done)
    if done.differing:
        print_message(f"{len(done.differing)} users still differ; run the command again")
    if left:
        print_message(
            f"{len(left)} findings cannot be repaired; see docs/how-to/verify-and-repair.md"
        )
    return 1 if left or done.differing else 0


async def _verify_settled(settings: Settings, board: str, report: ReportProgress) -> Verdict:
    """Verify all users again until no finding is left that the flusher ends, for a bounded time."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        verdict = await read_verdict(settings, board, None, report)
        settling = {one.check for one in verdict.findings}
        if not settling or settling - SETTLING or time.monotonic() > deadline:
            return verdict
        await asyncio.sleep(_POLL_S)


def _plan(verdict: Verdict) -> tuple[tuple[int, ...], tuple[Drift, ...]]:
    """Return the partitions to reseed and, of the others, the users to correct."""
    reseeded = {one.partition for one in verdict.findings if one.check in RESEED_CHECKS}
    if len(verdict.drifted) > RESEED_ABOVE:
        reseeded |= {one.partition for one in verdict.drifted}
    if any(one.check == "layout" for one in verdict.findings):
        reseeded |= set(range(verdict.partitions))  # a layout changes for the whole board
    numbers = sorted(n for n in reseeded if n is not None and n < verdict.partitions)
    drifted = tuple(one for one in verdict.drifted if one.partition not in reseeded)
    return tuple(numbers), drifted


def _print_plan(numbers: Sequence[int], drifted: Sequence[Drift]) -> None:
    if numbers:
        print_message(f"Partitions to reseed: {', '.join(map(str, numbers))}")
    if drifted:
        print_message(f"Users to correct: {len(drifted)}")


async def _repair(
    settings: Settings,
    name: str,
    numbers: Sequence[int],
    drifted: Sequence[Drift],
    report: ReportProgress,
) -> list[Change]:
    async with (
        open_store(settings, name="repair") as store,
        open_database(settings, **SESSION) as connection,
    ):
        board = await select_board(connection, name)
        if numbers:
            await _reseed(store, connection, board, numbers, report)
        return await correct_scores(
            store, connection, board, drifted, actor=operator_name(), report=report
        )


async def _reseed(
    store: Store,
    connection: Connection,
    board: Board,
    numbers: Sequence[int],
    report: ReportProgress,
) -> None:
    try:
        await rebuild(store, connection, board, numbers, actor=operator_name(), report=report)
    except OperatorMistake as error:
        raise OperatorMistake(
            f"{error.detail}; the flusher repairs this board by itself if it holds the lock"
        ) from error
