"""`scoreboard verify`: compare Redis with PostgreSQL."""

import asyncio
from pathlib import Path
from typing import Final

import click

from cli.output import print_json, print_message, print_table, progress
from cli.target import (
    board_option,
    board_or_default,
    data_dir_option,
    json_option,
    load_settings,
    open_database,
)
from scoreboard.ledger.boards import select_board
from scoreboard.ledger.migrations import require_schema
from scoreboard.recovery.reseed import SESSION, ReportProgress
from scoreboard.recovery.verify import Verdict, verify_season
from scoreboard.recovery.verify import verify as compare
from scoreboard.runtime.settings import Settings
from scoreboard.store.client import make_client
from scoreboard.store.durability import Requirements

SAMPLE: Final = 1000


@click.command()
@board_option
@click.option("--full", is_flag=True, help="Check all users and the whole ledger.")
@click.option("--sample", type=click.IntRange(min=1), default=SAMPLE, show_default=True,
              help="Approximate number of users in a random sample; ignored with "
              "--full.")  # fmt: skip
@click.option("--season", help="Check only this ended season: its scores against the ledger, and "
              "its final standings.")  # fmt: skip
@json_option
@data_dir_option
def verify(
    *,
    board: str | None,
    full: bool,
    sample: int,
    season: str | None,
    as_json: bool,
    data_dir: Path,
) -> int:
    """Compare Redis with PostgreSQL while updates continue.

    Exit 1 and list the differences if there are any. With --full, the ended seasons of the board
    are checked, too.

    \b
    Examples:
      scoreboard verify
      scoreboard verify --full --json > report.json
      scoreboard verify --board league --season 2026-W47
    """  # noqa: D301
    if season is not None and full:
        raise click.UsageError("Give either --full or --season")
    settings = load_settings(data_dir)
    board = board_or_default(settings, board)
    with progress() as report:
        verdict = asyncio.run(
            read_verdict(settings, board, None if full else sample, report)
            if season is None
            else _read_season_verdict(settings, board, season)
        )
    if as_json:
        print_json(verdict)
    else:
        print_verdict(verdict)
    more = "more than " if verdict.truncated else ""
    print_message(
        f"Board {board}: {verdict.users} users compared in {verdict.duration_s:.1f} s, "
        f"{len(verdict.drifted)} differ, {len(verdict.known)} are being corrected, "
        f"{more}{len(verdict.findings)} other findings"
    )
    return 0 if verdict.is_sound else 1


async def read_verdict(
    settings: Settings, name: str, sample: int | None, report: ReportProgress
) -> Verdict:
    """Compare a sample of the users of a board, or all of them with ``sample`` None.

    Raises UnknownBoard, SchemaMismatch, RedisUnavailable, DatabaseUnavailable.
    """
    async with (
        make_client(settings, name="verify") as client,
        open_database(settings, **SESSION) as connection,
    ):
        await require_schema(connection)
        board = await select_board(connection, name)
        return await compare(
            client,
            connection,
            board,
            sample=sample,
            report=report,
            required=Requirements.of(settings),
        )


async def _read_season_verdict(settings: Settings, name: str, season: str) -> Verdict:
    async with open_database(settings, **SESSION) as connection:
        await require_schema(connection)
        board = await select_board(connection, name)
        return await verify_season(connection, board, season)


def print_verdict(verdict: Verdict) -> None:
    """Print the differences and findings as tables, and the warnings as messages."""
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
