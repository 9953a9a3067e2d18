"""`scoreboard season`: list the seasons of a board, and read or revise their final standings."""

import asyncio
from pathlib import Path

import click
import msgspec

from cli.moderation import check_reason
from cli.output import confirm, print_json, print_message, print_table
from cli.parameters import BOARD
from cli.target import (
    DATABASE_URL,
    data_dir_option,
    json_option,
    load_settings,
    load_settings_to_change,
    open_database,
    operator_name,
    yes_option,
)
from scoreboard.errors import OperatorMistake, UnknownSeason
from scoreboard.ledger.exports import require_board
from scoreboard.ledger.migrations import require_schema
from scoreboard.ledger.seasons import (
    SeasonSummary,
    read_season,
    revise_season,
    select_season_standings,
    select_seasons,
)
from scoreboard.model import PAGE_MAX, Row
from scoreboard.runtime.settings import Settings

_LIMIT = click.IntRange(1, PAGE_MAX)


@click.group()
def season() -> None:
    """List the seasons of a board, and read or revise their final standings."""


@season.command(name="list")
@click.argument("name", type=BOARD)
@click.option("--limit", type=_LIMIT, default=20, show_default=True, help="Number of seasons.")
@click.option("--before", help="List the seasons before this one.")
@json_option
@data_dir_option
def list_seasons(
    *, name: str, limit: int, before: str | None, as_json: bool, data_dir: Path
) -> None:
    """List the seasons of board NAME, latest first, with the winners of those that are final.

    \b
    Example:
      scoreboard season list league
    """  # noqa: D301
    found = asyncio.run(_list(load_settings(data_dir), name, limit, before))
    if as_json:
        print_json([msgspec.to_builtins(one) for one in found])
        return
    print_table(
        ("season", "begins", "ends", "state", "users", "winners", "revised"),
        [
            (
                one.id,
                one.starts_at.isoformat(timespec="seconds"),
                one.ends_at.isoformat(timespec="seconds"),
                "final" if one.is_frozen else "open",
                one.users if one.is_frozen else "",
                ", ".join(f"{row.user_id} {row.score}" for row in one.winners),
                one.revised_at.isoformat(timespec="seconds") if one.revised_at else "",
            )
            for one in found
        ],
    )
    if not found:
        print_message(f"Board {name} has no seasons")


async def _list(
    settings: Settings, name: str, limit: int, before: str | None
) -> list[SeasonSummary]:
    async with open_database(settings) as connection:
        await require_board(connection, name)
        found = await select_seasons(connection, name, limit=limit, before=before)
        if before is not None and not found:
            await read_season(connection, name, before)
        return found


@season.command()
@click.argument("name", type=BOARD)
@click.argument("season_id", metavar="SEASON")
@click.option("--limit", type=_LIMIT, default=10, show_default=True, help="Number of users.")
@click.option("--offset", type=click.IntRange(0), default=0, help="Number of users to skip.")
@json_option
@data_dir_option
def top(
    *, name: str, season_id: str, limit: int, offset: int, as_json: bool, data_dir: Path
) -> None:
    """Show the final standings of SEASON of board NAME.

    \b
    Example:
      scoreboard season top league 2026-W48
    """  # noqa: D301
    rows = asyncio.run(_top(load_settings(data_dir), name, season_id, limit, offset))
    if as_json:
        print_json([msgspec.to_builtins(row) for row in rows])
        return
    print_table(("rank", "user", "score"), [(row.rank, row.user_id, row.score) for row in rows])
    if not rows:
        print_message(f"Season {season_id} of board {name} has {_beyond(offset)}")


def _beyond(offset: int) -> str:
    return f"no users after the first {offset}" if offset else "no users"


async def _top(
    settings: Settings, name: str, season_id: str, limit: int, offset: int
) -> tuple[Row, ...]:
    async with open_database(settings) as connection:
        await require_board(connection, name)
        found = await read_season(connection, name, season_id)
        if not found.is_frozen:
            raise OperatorMistake(
                f"Season {season_id} of board {name} is not final",
                hint=f"its scores are those of: scoreboard board top --board {name}",
            )
        return await select_season_standings(
            connection, name, season_id, offset=offset, limit=limit
        )


@season.command()
@click.argument("name", type=BOARD)
@click.argument("season_id", metavar="SEASON")
@click.option("--reason", required=True, callback=check_reason, help="Why; for the audit log.")
@yes_option
@data_dir_option
def revise(*, name: str, season_id: str, reason: str, yes: bool, data_dir: Path) -> None:
    """Compute the final standings of SEASON of board NAME again, from its scores.

    Use it if `verify` reports that they differ. After `dead apply` the flusher does it by itself.
    Users who were banned when the season ended stay out.

    \b
    Example:
      scoreboard season revise league 2026-W48 --reason "a row was changed by hand"
    """  # noqa: D301
    settings = load_settings_to_change(data_dir, needs=(DATABASE_URL,))
    if not yes:
        confirm(f"Compute the final standings of season {season_id} of board {name} again?")
    users = asyncio.run(_revise(settings, name, season_id, reason))
    print_message(f"Season {season_id} of board {name}: {users} users in the final standings")


async def _revise(settings: Settings, name: str, season_id: str, reason: str) -> int:
    async with open_database(settings, statement_timeout="0") as connection:
        await require_schema(connection)
        await require_board(connection, name)
        users = await revise_season(
            connection, name, season_id, actor=operator_name(), reason=reason, is_forced=True
        )
        if users is None:
            raise UnknownSeason(
                f"Board {name} has no final season {season_id}, or it is being revised now"
            )
        return users
