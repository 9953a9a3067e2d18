"""`scoreboard export`: standings, the ledger, or everything about a user, as CSV or Parquet."""

import asyncio
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

import click

from cli.export_file import (
    FORMATS,
    STDOUT,
    Format,
    check_destination,
    make_writer,
    open_entry,
    open_output,
)
from cli.output import print_message, progress
from cli.parameters import BOARD, MOMENT, USER_ID
from cli.target import (
    DATABASE_URL,
    board_option,
    board_or_default,
    data_dir_option,
    load_settings,
    open_database,
    operator_name,
)
from scoreboard.errors import OperatorMistake, UnknownUser
from scoreboard.ledger import exports
from scoreboard.ledger.audit import audited
from scoreboard.ledger.exports import Export, LedgerFilter
from scoreboard.ledger.migrations import require_schema
from scoreboard.ledger.pool import Connection, snapshot
from scoreboard.ledger.retention import hold_ledger, require_ledger
from scoreboard.ledger.scores import select_totals
from scoreboard.ledger.seasons import read_season, select_newest_season
from scoreboard.model import scores_name
from scoreboard.recovery.reseed import ReportProgress
from scoreboard.runtime.settings import Settings

NEEDS: Final = [DATABASE_URL]
PAGE: Final = 20_000
"""Rows in memory, and of a row group of Parquet."""

_Command = TypeVar("_Command", bound=Callable[..., Any])


@click.group()
def export() -> None:
    """Export standings, the ledger, or the data of a user."""


def _file_options(command: _Command) -> _Command:
    """Add `--format` and `--output`."""
    for option in (
        click.option(
            "--output",
            type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
            default=STDOUT,
            show_default=True,
            metavar="FILE",
            help="File to write or replace; - is stdout.",
        ),
        click.option(
            "--format",
            "form",
            type=click.Choice(FORMATS),
            default="csv",
            show_default=True,
            help="Format of the rows; parquet needs the extra `parquet`.",
        ),
    ):
        command = option(command)
    return command


@export.command(name="board")
@click.argument("name", type=BOARD)
@click.option("--season", help="A season of the board, such as 2026-W47: its final standings.")
@_file_options
@data_dir_option
def export_board(
    *, name: str, season: str | None, form: Format, output: Path, data_dir: Path
) -> None:
    """Export the standings of the board NAME: rank, user, score and time.

    The standings are those of PostgreSQL, which has every action about 0.1 s after Redis. On a
    board with seasons they are those of the current season, or the final ones of --season.
    `scoreboard board export` writes the properties of the boards instead.

    \b
    Examples:
      scoreboard export board weekly --output weekly.csv
      scoreboard export board weekly --format parquet --output weekly.parquet
      scoreboard export board league --season 2026-W47 --output 2026-W47.csv
    """  # noqa: D301
    check_destination(output, form=form, is_archive=False)

    async def run(report: ReportProgress) -> int:
        settings = load_settings(data_dir, NEEDS)
        detail = {"of": "board", "format": form, "season": season}
        async with _open(settings, detail, board=name) as connection:
            total, chosen = await _choose_standings(connection, name, season)
            with open_output(output) as file:
                return await _copy(connection, chosen, file, form, total=total, report=report)

    _run(run, output)


async def _choose_standings(
    connection: Connection, board: str, season: str | None
) -> tuple[int, Export]:
    """Return how many users standings have, and their export; None is the current season, if any.

    Raises UnknownSeason, OperatorMistake (the season is over and not final), DatabaseUnavailable.
    """
    newest = await select_newest_season(connection, board)
    current = newest.id if newest else ""
    if season is None or season == current:
        scores = scores_name(board, current)
        return (await select_totals(connection, scores))[0], exports.standings(board, scores)
    found = await read_season(connection, board, season)
    if not found.is_frozen:
        raise OperatorMistake(f"Season {season} of board {board} is not final yet: try again")
    return found.users, exports.season_standings(board, season)


@export.command(name="ledger")
@board_option
@click.option("--user", "user_id", type=USER_ID, help="Only the actions of this user.")
@click.option("--since", type=MOMENT, help="First time of an action, such as 2026-07-01 or "
              "2026-07-01T08:30:00Z; UTC without a zone.")  # fmt: skip
@click.option("--until", type=MOMENT, help="Time before which the actions are.")
@_file_options
@data_dir_option
def export_ledger(
    *,
    board: str | None,
    user_id: str | None,
    since: datetime | None,
    until: datetime | None,
    form: Format,
    output: Path,
    data_dir: Path,
) -> None:
    """Export the actions of a board, one row each, in no particular order.

    \b
    Examples:
      scoreboard export ledger --board weekly --format parquet --output weekly.parquet
      scoreboard export ledger --user alice --since 2026-07-01
    """  # noqa: D301
    check_destination(output, form=form, is_archive=False)
    if since and until and since >= until:
        raise click.UsageError("--since must be before --until")

    async def run(report: ReportProgress) -> int:
        settings = load_settings(data_dir, NEEDS)
        name = board_or_default(settings, board)
        chosen = LedgerFilter(board=name, user=user_id, since=since, until=until)
        detail = {"of": "ledger", "format": form, "user": user_id, "since": since, "until": until}
        async with _open(settings, detail, board=name) as connection:
            await hold_ledger(connection)
            await require_ledger(connection, name)
            total = await exports.count_ledger(connection, chosen) if chosen.is_whole else 0
            with open_output(output) as file:
                return await _copy(
                    connection, exports.ledger(chosen), file, form, total=total, report=report
                )

    _run(run, output)


@export.command(name="user")
@click.argument("user_id", type=USER_ID, metavar="USER")
@_file_options
@data_dir_option
def export_user(*, user_id: str, form: Format, output: Path, data_dir: Path) -> None:
    """Export everything that PostgreSQL stores about USER, as a ZIP archive.

    The archive has a file for each table: profile, scores, ledger, sums of detached ledgers,
    rejected actions, dead letters, corrections, voids and bans, and administrative changes that
    name the user.

    \b
    Example:
      scoreboard export user alice --output alice.zip
    """  # noqa: D301
    check_destination(output, form=form, is_archive=True)

    async def run(report: ReportProgress) -> int:
        settings = load_settings(data_dir, NEEDS)
        detail = {"of": "user", "format": form, "user": user_id}
        async with _open(settings, detail, board=None) as connection:
            await hold_ledger(connection)
            with open_output(output) as file:
                return await _copy_user(connection, user_id, file, form, report)

    _run(run, output)


@asynccontextmanager
async def _open(
    settings: Settings, detail: dict[str, Any], *, board: str | None
) -> AsyncIterator[Connection]:
    """Record an export in the audit log and yield a connection with a snapshot."""
    async with open_database(settings, **exports.SESSION) as connection:
        await require_schema(connection)
        if board is not None:
            await exports.require_board(connection, board)
        given = {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in detail.items()
            if value is not None
        }
        # Recorded first: an export that is interrupted may have read everything.
        async with audited(connection) as trail:
            await trail.insert(actor=operator_name(), action="export", board=board, detail=given)
        async with snapshot(connection):
            yield connection


async def _copy(
    connection: Connection,
    chosen: Export,
    file: BinaryIO,
    form: Format,
    *,
    total: int,
    report: ReportProgress,
    step: str = "exported",
) -> int:
    """Write the rows of an export to a file; return how many."""
    done = 0
    async with exports.open_rows(connection, chosen, page=PAGE) as rows:
        writer = make_writer(file, rows.columns, form)
        async for page in rows.pages:
            writer.write(page)
            done += len(page)
            report(step, done, max(done, total) if total else 0)
        writer.finish()
    return done


async def _copy_user(
    connection: Connection, user_id: str, file: BinaryIO, form: Format, report: ReportProgress
) -> int:
    """Write an archive with a file for each table of a user; return the number of rows.

    Raises UnknownUser if only the audit log names the user, which has the row of this export.
    """
    done = audited_rows = 0
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, chosen in exports.user_tables(user_id).items():
            with open_entry(archive, f"{name}.{form}") as entry:
                count = await _copy(
                    connection, chosen, entry, form, total=0, report=report, step=name
                )
            done += count
            audited_rows += count if name == exports.AUDIT else 0
    if done == audited_rows:
        raise UnknownUser(f"User {user_id} does not exist")
    return done


def _run(run: Callable[[ReportProgress], Any], output: Path) -> None:
    with progress() as report:
        done = asyncio.run(run(report))
    where = "stdout" if output == STDOUT else str(output)
    print_message(f"{done} rows exported to {where}")
