"""`scoreboard board`: create, list, read and watch boards."""

import asyncio
from contextlib import suppress
from pathlib import Path

import click

from cli import board_viewer
from cli.administration import create_board
from cli.output import print_json, print_message, print_table
from cli.parameters import BOARD
from cli.target import (
    REDIS_URL,
    board_option,
    board_or_default,
    data_dir_option,
    json_option,
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
from scoreboard.model import PAGE_MAX, Board, Layout, Window
from scoreboard.runtime.settings import Settings
from scoreboard.security.tokens import READ

DEFAULT = Layout()


@click.group()
def board() -> None:
    """Create, list, read and watch boards."""


@board.command()
@click.argument("name", type=BOARD)
@click.option("--partitions", type=click.IntRange(1, 256), default=DEFAULT.partitions,
              show_default=True, help="Number of partitions; one flusher at a time "
              "serves each.")  # fmt: skip
@click.option("--seen-seconds", type=click.IntRange(min=1), default=DEFAULT.seen_seconds,
              show_default=True, help="Minimum time for which Redis remembers an "
              "action.")  # fmt: skip
@click.option("--seen-shards", type=click.IntRange(1, 65536), default=DEFAULT.seen_shards,
              show_default=True, help="Number of Redis hashes for remembered actions; use the "
              "number of actions expected in --seen-seconds, divided by 250.")  # fmt: skip
@click.option("--private", "is_private", is_flag=True, help="Require a token to read the board.")
@click.option("--if-missing", is_flag=True, help="Do not change a board that exists.")
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
    """Create board NAME; open it with `scoreboard reseed --board NAME`.

    To change --partitions, --seen-seconds or --seen-shards later, the whole board must be reseeded.

    \b
    Example:
      scoreboard board create weekly && scoreboard reseed --board weekly
    """  # noqa: D301
    new = Board(name, Layout(partitions, seen_seconds, seen_shards), not is_private)
    if asyncio.run(_create(load_settings_to_change(data_dir), new)):
        print_message(f"Board {name} created; open it with: scoreboard reseed --board {name}")
    elif not if_missing:
        raise OperatorMistake(f"Board {name} already exists")


async def _create(settings: Settings, new: Board) -> bool:
    async with open_database(settings) as connection:
        return await create_board(connection, new, actor=operator_name())


@board.command(name="list")
@json_option
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
              help="Number of rows.")  # fmt: skip
@click.option("--offset", type=click.IntRange(min=0), default=0, help="Number of rows to skip.")
@json_option
@data_dir_option
def top(*, board: str | None, limit: int, offset: int, as_json: bool, data_dir: Path) -> None:
    """Print the best users of a board, as ranked in Redis."""
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
        # Redis cannot distinguish a board that is not loaded from one that does not exist.
        if settings.database_url:
            async with open_database(settings) as connection:
                await select_board(connection, name)
        raise


@board.command()
@board_option
@click.option("--url", help="Address of the streamer, ws:// or wss://.  [default: that of the "
              "running `scoreboard up`]")  # fmt: skip
@click.option("--count", type=click.IntRange(min=1), help="Stop after this many boards.")
@click.option("--json", "as_json", is_flag=True, help="Print each board as a line of JSON.")
@data_dir_option
def watch(
    *, board: str | None, url: str | None, count: int | None, as_json: bool, data_dir: Path
) -> None:
    """Follow a board live, until Ctrl-C.

    On a terminal the board is redrawn in place; elsewhere each change is a line.
    """
    token = None
    if url is None:
        url = load_running_system(data_dir, "--url").ws
        audience = load_audience(data_dir)
        with suppress(OperatorMistake):  # with another issuer, only public boards can be read
            token = load_issuer(data_dir).issue("operator", [READ], audience=audience)
    asyncio.run(board_viewer.follow(url, board, token=token, count=count, as_json=as_json))
