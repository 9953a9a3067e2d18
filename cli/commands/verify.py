"""`scoreboard verify` and `scoreboard repair`: whether both stores agree, and what to do if not."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
from msgspec import Struct

from cli.output import confirm, print_json, print_message, print_table, progress
from cli.target import (
    board_option,
    board_or_default,
    data_dir_option,
    load_settings,
    load_settings_to_change,
    open_database,
    operator_name,
)
from scoreboard.errors import OperatorMistake
from scoreboard.ledger.boards import select_board
from scoreboard.ledger.migrations import require_current
from scoreboard.ledger.pool import Connection
from scoreboard.model import Board
from scoreboard.recovery.repair import Change
from scoreboard.recovery.repair import repair as set_right
from scoreboard.recovery.reseed import SESSION, ReportProgress, Reseeded, reseed
from scoreboard.recovery.verify import Drift, Finding, Verdict
from scoreboard.recovery.verify import verify as compare
from scoreboard.runtime.settings import Settings
from scoreboard.store.client import make_client
from scoreboard.store.store import Store

SAMPLE: Final = 1000
RESEED_ABOVE: Final = 5000
"""More drifted users than this are set right quicker, and no less surely, by a reseed."""

RESEEDED: Final = frozenset({"epoch", "state", "rewind", "layout"})
"""Findings that only a reseed of the partition mends."""


class Repair(Struct, frozen=True):
    """What was done, or would be."""

    board: str
    changes: tuple[Drift | Change, ...] = ()
    reseeded: tuple[int, ...] = ()
    left: tuple[Finding, ...] = ()
    is_dry: bool = False


@click.command()
@board_option
@click.option("--full", is_flag=True, help="All users, and all checks of the ledger.")
@click.option("--sample", type=click.IntRange(min=1), default=SAMPLE, show_default=True,
              help="About so many users by chance, without --full.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@data_dir_option
def verify(*, board: str | None, full: bool, sample: int, as_json: bool, data_dir: Path) -> int:
    """Check that Redis and PostgreSQL agree, while everybody goes on playing.

    Exit 1, with the users who differ, if they do not.

    \b
    Examples:
      scoreboard verify
      scoreboard verify --full --json > verdict.json
    """  # noqa: D301
    settings = load_settings(data_dir)
    board = board_or_default(settings, board)
    with progress() as report:
        verdict = asyncio.run(_verify(settings, board, None if full else sample, report))
    if as_json:
        print_json(verdict)
    else:
        _print(verdict)
    print_message(
        f"Board {board}: {verdict.users} users compared in {verdict.duration_s:.1f} s, "
        f"{len(verdict.drifted)} differ, {len(verdict.known)} are being corrected, "
        f"{_count(verdict)} other findings"
    )
    return 0 if verdict.is_sound else 1


async def _verify(
    settings: Settings, name: str, sample: int | None, report: ReportProgress
) -> Verdict:
    client = make_client(settings, name="verify")
    try:
        async with open_database(settings, **SESSION) as connection:
            await require_current(connection)
            board = await select_board(connection, name)
            return await compare(client, connection, board, sample=sample, report=report)
    finally:
        await client.aclose()


def _count(verdict: Verdict) -> str:
    """Say how many findings there are, which may be more than are listed."""
    more = "more than " if verdict.truncated else ""
    return f"{more}{len(verdict.findings)}"


def _print(verdict: Verdict) -> None:
    for warning in verdict.warnings:
        print_message(f"Warning: {warning}")
    rows = [("differs", one.user_id, one.redis, one.wanted) for one in verdict.drifted]
    rows += [("being corrected", one.user_id, one.redis, one.wanted) for one in verdict.known]
    if rows:
        print_table(("user", "id", "redis", "due"), rows)
    if verdict.findings:
        print_table(
            ("check", "partition", "finding"),
            [(one.check, one.partition, one.detail) for one in verdict.findings],
        )


@click.command()
@board_option
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@data_dir_option
def repair(*, board: str | None, dry_run: bool, yes: bool, as_json: bool, data_dir: Path) -> int:
    """Verify all users, show what differs, and set Redis right.

    Few users are set right while everybody goes on playing. Where Redis came back older, or very
    many differ, the partition is reseeded: updates answer 503 meanwhile. Exit 1 if something is
    left that this cannot mend.

    \b
    Examples:
      scoreboard repair --dry-run
      scoreboard repair --yes
    """  # noqa: D301
    settings = load_settings_to_change(data_dir)
    board = board_or_default(settings, board)
    with progress() as report:
        verdict = asyncio.run(_verify(settings, board, None, report))
    if not as_json:
        _print(verdict)
    closed = {one.partition for one in verdict.findings if one.check in RESEEDED}
    left = tuple(one for one in verdict.findings if one.check not in RESEEDED)
    if len(verdict.drifted) > RESEED_ABOVE:
        closed |= {one.partition for one in verdict.drifted}
    if any(one.check == "layout" for one in verdict.findings):
        closed |= set(range(verdict.partitions))  # a layout changes for the whole board
    numbers = sorted(n for n in closed if n is not None and n < verdict.partitions)
    drifted = tuple(one for one in verdict.drifted if one.partition not in closed)
    if not numbers and not drifted:
        print_message(f"Board {board}: there is nothing to repair")
        done = Repair(board, left=left, is_dry=dry_run)
    elif dry_run:
        _announce(numbers, drifted)
        done = Repair(board, drifted, tuple(numbers), left, is_dry=True)
    else:
        _announce(numbers, drifted)
        if not yes:
            confirm("Go on?")
        with progress() as report:
            changes = asyncio.run(_repair(settings, board, numbers, drifted, report))
        print_message(f"{len(changes)} users set right, {len(numbers)} partitions reseeded")
        done = Repair(board, tuple(changes), tuple(numbers), left)
    if as_json:
        print_json(done)
    if left:
        print_message(
            f"{len(left)} findings are left that a repair does not mend; see docs/commands.md"
        )
    return 1 if left else 0


def _announce(numbers: Sequence[int], drifted: Sequence[Drift]) -> None:
    if numbers:
        print_message(f"To be reseeded: partitions {', '.join(map(str, numbers))}")
    if drifted:
        print_message(f"To be set right online: {len(drifted)} users")


async def _repair(
    settings: Settings,
    name: str,
    numbers: Sequence[int],
    drifted: Sequence[Drift],
    report: ReportProgress,
) -> list[Change]:
    client = make_client(settings, name="repair")
    try:
        async with open_database(settings, **SESSION) as connection:
            store = Store(client)
            board = await select_board(connection, name)
            if numbers:
                await _reseed(store, connection, board, numbers, report)
            return await set_right(
                store, connection, board, drifted, actor=operator_name(), report=report
            )
    finally:
        await client.aclose()


async def _reseed(
    store: Store,
    connection: Connection,
    board: Board,
    numbers: Sequence[int],
    report: ReportProgress,
) -> Reseeded:
    try:
        return await reseed(store, connection, board, numbers, actor=operator_name(), report=report)
    except OperatorMistake as error:
        raise OperatorMistake(
            f"{error.detail}; if that is the flusher, it repairs this by itself"
        ) from error
