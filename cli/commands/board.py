"""`scoreboard board`: makes boards, lists them, prints the best of one, and watches it live."""

import asyncio
from contextlib import suppress
from pathlib import Path

import click

from cli import board_viewer
from cli.administration import create_board
from cli.output import print_json, print_message, print_table
from cli.target import (
    REDIS_URL,
    board_option,
    board_or_default,
    data_dir_option,
    load_audience,
    load_issuer,
    load_running_system,
    load_settings,
    load_settings_to_change,
    open_database,
    open_store,
    operator_name,
)
from scoreboard.errors import OperatorMistake, Uninitialised
from scoreboard.ledger.boards import select_board, select_boards
from scoreboard.model import PAGE_MAX, Board, Layout, Window, is_board_name
from scoreboard.runtime.settings import Settings
from scoreboard.security.tokens import READ

DEFAULT = Layout()


@click.group()
def board() -> None:
    """Make, list, read and watch boards."""


@board.command()
@click.argument("name")
@click.option("--partitions", type=click.IntRange(1, 256), default=DEFAULT.partitions,
              show_default=True, help="Slices, each of which one flusher serves.")  # fmt: skip
@click.option("--seen-seconds", type=click.IntRange(min=1), default=DEFAULT.seen_seconds,
              show_default=True, help="A repeat replays for this long, at least.")  # fmt: skip
@click.option("--seen-shards", type=click.IntRange(1, 65536), default=DEFAULT.seen_shards,
              show_default=True, help="Expected actions in that time, by 250.")  # fmt: skip
@click.option("--private", "is_private", is_flag=True, help="Reading needs a token.")
@click.option("--if-missing", is_flag=True, help="Leave an existing board as it is.")
@data_dir_option
def create(
    *,
    name: str,
    partitions: int,
    seen_seconds: int,
    seen_shards: int,
    is_private: bool,
    if_missing: bool,
    data_dir: Path,
) -> None:
    """Make board NAME; `scoreboard reseed --board NAME` then opens it.

    Partitions and the seen window are fixed from here on.

    \b
    Example:
      scoreboard board create weekly && scoreboard reseed --board weekly
    """  # noqa: D301
    if not is_board_name(name):
        raise click.BadParameter("a board is 1 to 32 characters of a-z 0-9 _ . -")
    made = Board(name, Layout(partitions, seen_seconds, seen_shards), not is_private)
    if asyncio.run(_create(load_settings_to_change(data_dir), made)):
        print_message(f"Board {name} is made; scoreboard reseed --board {name} opens it")
    elif not if_missing:
        raise OperatorMistake(f"There is a board {name} already")


async def _create(settings: Settings, made: Board) -> bool:
    async with open_database(settings) as connection:
        return await create_board(connection, made, actor=operator_name())


@board.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@data_dir_option
def list_boards(*, as_json: bool, data_dir: Path) -> None:
    """List the boards."""
    found = asyncio.run(_list(load_settings(data_dir)))
    if as_json:
        print_json(found)
        return
    print_table(
        ("board", "partitions", "seen seconds", "seen shards", "public"),
        [
            (
                one.name,
                one.layout.partitions,
                one.layout.seen_seconds,
                one.layout.seen_shards,
                "yes" if one.is_public else "no",
            )
            for one in found
        ],
    )


async def _list(settings: Settings) -> list[Board]:
    async with open_database(settings) as connection:
        return await select_boards(connection)


@board.command()
@board_option
@click.option("--limit", type=click.IntRange(1, PAGE_MAX), default=10, show_default=True,
              help="Rows.")  # fmt: skip
@click.option("--offset", type=click.IntRange(min=0), default=0, help="Rows to leave out.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@data_dir_option
def top(*, board: str | None, limit: int, offset: int, as_json: bool, data_dir: Path) -> None:
    """Print the best of a board, as Redis ranks them now."""
    settings = load_settings(data_dir, needs=[REDIS_URL])
    board = board_or_default(settings, board)
    window = asyncio.run(_top(settings, board, offset, limit))
    if as_json:
        print_json(
            {
                "board": board,
                "epoch": window.epoch,
                "seq": window.seq,
                "total": window.total,
                "leaderboard": window.rows,
            }
        )
    else:
        rows = [(row.rank, row.user_id, row.score) for row in window.rows]
        print_table(("rank", "user", "score"), rows)


async def _top(settings: Settings, name: str, offset: int, limit: int) -> Window:
    try:
        async with open_store(settings) as store:
            return await store.leaderboard(name, offset=offset, limit=limit)
    except Uninitialised:
        # Redis does not tell a board that is not loaded from one that does not exist.
        if settings.database_url:
            async with open_database(settings) as connection:
                await select_board(connection, name)
        raise


@board.command()
@board_option
@click.option("--url", help="The streamer, ws:// or wss://; default: that of the running `up`.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many boards.")
@click.option("--json", "as_json", is_flag=True, help="Print each board as a line of JSON.")
@data_dir_option
def watch(
    *, board: str | None, url: str | None, count: int | None, as_json: bool, data_dir: Path
) -> None:
    """Follow a board as viewers see it; Ctrl-C ends.

    On a terminal the board is redrawn in place; elsewhere each change is a line.
    """
    token = None
    if url is None:
        url = load_running_system(data_dir, "--url").ws
        audience = load_audience(data_dir)
        with suppress(OperatorMistake):  # tokens of another issuer: public boards only
            token = load_issuer(data_dir).issue("operator", [READ], audience=audience)
    asyncio.run(board_viewer.follow(url, board, token=token, count=count, as_json=as_json))
