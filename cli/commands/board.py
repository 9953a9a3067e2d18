"""`scoreboard board`: create, change, list, read and watch boards."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

import click
import msgspec

from cli import board_file, board_viewer
from cli.administration import change_board, delete_board, open_new_board, reshard_board
from cli.board_file import Change
from cli.output import (
    confirm,
    print_json,
    print_lines,
    print_message,
    print_table,
    progress,
    prompt,
)
from cli.parameters import BOARD, FILE, POINTS, SPAN
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
    yes_option,
)
from scoreboard.errors import OperatorMistake, RedisUnavailable, Uninitialised
from scoreboard.ledger.boards import require_free_name, select_board, select_boards
from scoreboard.ledger.pool import Connection
from scoreboard.ledger.scores import has_scores
from scoreboard.model import (
    PAGE_MAX,
    PARTITIONS_MAX,
    SCORE_MAX,
    Board,
    Layout,
    Limits,
    Lowering,
    Operator,
    Order,
    Partition,
    PointsFrom,
    Rules,
    Window,
)
from scoreboard.recovery.board_changes import LimitChange, create_board, make_rules
from scoreboard.recovery.reshard import count_partitions
from scoreboard.runtime.settings import Settings
from scoreboard.security.tokens import READ

DEFAULT: Final = Layout()
RULES: Final = Rules()
SCORE: Final = click.IntRange(0, SCORE_MAX)

_OPERATORS: Final = {
    "add": "an action adds its points to the score",
    "best": "the score is the best value of all actions",
    "last": "the score is the value of the last action",
}
_ORDERS: Final = {"highest": "the highest score is first", "lowest": "the lowest score is first"}
_LOWERING: Final = {
    "nobody": "points are never negative",
    "trusted": "callers with update:score:any may send negative points",
    "players": "players may send negative points",
}
_POINTS: Final = {
    "catalogue": "the catalogue of actions sets the points",
    "stated": "players state the points",
}


_Command = TypeVar("_Command", bound=Callable[..., None])


def limit_options(command: _Command) -> _Command:
    """Add the options for the limits of a board."""
    for option in (
        click.option("--window", "window_s", type=SPAN, help="Length of the window, such as 90s, "
                     "30m, 1h or 7d."),
        click.option("--max-points-per-window", "per_window", type=POINTS, help="Most points that "
                     "the actions of a user may gain in a window, or none."),
        click.option("--max-points-per-action", "per_action", type=POINTS, help="Most points that "
                     "one action may gain, or none; on a board with values, how much better it may "
                     "make the score."),
    ):  # fmt: skip
        command = option(command)
    return command


@click.group()
def board() -> None:
    """Create, change, list, read and watch boards."""


@board.command()
@click.argument("name", type=BOARD)
@click.option("--operator", type=click.Choice(get_args(Operator)), default=RULES.operator,
              show_default=True, help="What an action does to the score: add its points, keep the "
              "best value, or keep the last value.")  # fmt: skip
@click.option("--order", type=click.Choice(get_args(Order)), default=RULES.order,
              show_default=True, help="Which scores are first.")  # fmt: skip
@click.option("--min", "score_min", type=SCORE, default=RULES.score_min, show_default=True,
              help="Lowest possible score.")  # fmt: skip
@click.option("--max", "score_max", type=SCORE, default=RULES.score_max, show_default=True,
              help="Highest possible score.")  # fmt: skip
@click.option("--lowering", type=click.Choice(get_args(Lowering)), default=RULES.lowering,
              show_default=True, help="Who may send negative points; trusted: callers with the "
              "scope update:score:any.")  # fmt: skip
@click.option("--points", type=click.Choice(get_args(PointsFrom)), default=RULES.points,
              show_default=True, help="Whether the catalogue of actions sets the points, or "
              "players state them.")  # fmt: skip
@click.option("--season", default="", help="How long a season is: daily, weekly, monthly, or "
              "'cron:EXPRESSION', such as 'cron:0 6 * * 1'. When it ends, all scores begin anew, "
              "and its standings are kept.")  # fmt: skip
@click.option("--time-zone", default="", help="Time zone of the seasons, such as Europe/Berlin; "
              "UTC by default.")  # fmt: skip
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
@limit_options
@click.option("--if-missing", is_flag=True, help="Do not change a board that exists; open it if "
              "it is not open and has no scores.")  # fmt: skip
@data_dir_option
def create(
    *,
    name: str,
    operator: Operator,
    order: Order,
    score_min: int,
    score_max: int,
    lowering: Lowering,
    points: PointsFrom,
    season: str,
    time_zone: str,
    partitions: int,
    seen_seconds: int,
    seen_shards: int,
    is_private: bool,
    per_action: int | None,
    per_window: int | None,
    window_s: int | None,
    if_missing: bool,
    data_dir: Path,
) -> None:
    """Create board NAME and open it; services serve it within two seconds.

    Operator, order, bounds, --lowering, --points and seasons are fixed. To change --partitions,
    --seen-seconds or --seen-shards later, the whole board must be reseeded. `board set` changes
    visibility and limits.

    \b
    Examples:
      scoreboard board create weekly
      scoreboard board create laps --operator best --order lowest --points stated
      scoreboard board create league --season weekly --time-zone Europe/Berlin
      scoreboard board create arena --max-points-per-window 500 --window 1h
    """  # noqa: D301
    fixed = (operator, order, score_min, score_max, lowering, points)
    rules = make_rules(Rules(*fixed, season=season, time_zone=time_zone))
    new = Board(name, Layout(partitions, seen_seconds, seen_shards, rules), not is_private)
    limits = LimitChange(per_action, per_window, window_s)
    new = msgspec.structs.replace(new, limits=limits.applied_to(new))
    settings = load_settings_to_change(data_dir)
    is_new, is_opened = asyncio.run(_create(settings, new, if_missing=if_missing))
    if is_new:
        print_message(f"Board {name} is created and open")
    elif is_opened:
        print_message(f"Board {name} exists and is now open")
    else:
        print_message(f"Board {name} exists and was not changed")


async def _create(settings: Settings, new: Board, *, if_missing: bool) -> tuple[bool, bool]:
    """Create and open a board; return whether it is new, and whether it was opened."""
    async with open_database(settings) as connection:
        is_new = await create_board(connection, new, actor=operator_name())
        if not is_new and not if_missing:
            raise OperatorMistake(f"Board {new.name} already exists")
    try:
        return is_new, await open_new_board(settings, new.name, actor=operator_name())
    except RedisUnavailable as error:
        raise RedisUnavailable(
            f"Board {new.name} is in PostgreSQL but not open; when Redis is reachable, run: "
            f"scoreboard board create {new.name} --if-missing"
        ) from error


@board.command(name="set")
@click.argument("name", type=BOARD)
@click.option("--public/--private", "is_public", default=None, help="Whether everyone may read "
              "the board, or only callers with a token.")  # fmt: skip
@limit_options
@data_dir_option
def set_board(
    *,
    name: str,
    is_public: bool | None,
    per_action: int | None,
    per_window: int | None,
    window_s: int | None,
    data_dir: Path,
) -> None:
    """Make board NAME public or private, or limit the points of its users.

    Services apply it within a second: streams of readers without a token are closed. An action that
    exceeds a limit is held: see `scoreboard held`. What is not given does not change.

    \b
    Examples:
      scoreboard board set weekly --private
      scoreboard board set weekly --max-points-per-action 100
      scoreboard board set weekly --max-points-per-window 500 --window 1h
      scoreboard board set weekly --max-points-per-window none
    """  # noqa: D301
    limits = LimitChange(per_action, per_window, window_s)
    has_limits = limits != LimitChange()
    if 0 in {per_window, window_s} and (per_window or window_s):
        raise click.UsageError("Give --max-points-per-window and --window, or none for both")
    if is_public is None and not has_limits:
        raise click.UsageError("Give --public, --private or a limit")
    settings = load_settings_to_change(data_dir)
    is_changed = asyncio.run(
        change_board(
            settings,
            name,
            actor=operator_name(),
            is_public=is_public,
            limits=limits if has_limits else None,
        )
    )
    print_message(f"Board {name} is changed" if is_changed else f"Board {name} was so before")


@board.command()
@click.argument("name", type=BOARD)
@data_dir_option
def archive(*, name: str, data_dir: Path) -> None:
    """Stop board NAME from accepting actions; it can still be read.

    Updates get 409 board-archived and change nothing. `board unarchive` reverses it.
    """
    settings = load_settings_to_change(data_dir)
    is_changed = asyncio.run(change_board(settings, name, actor=operator_name(), state="archived"))
    print_message(f"Board {name} is archived now" if is_changed else f"Board {name} was archived")


@board.command()
@click.argument("name", type=BOARD)
@data_dir_option
def unarchive(*, name: str, data_dir: Path) -> None:
    """Make board NAME accept actions again."""
    settings = load_settings_to_change(data_dir)
    is_changed = asyncio.run(change_board(settings, name, actor=operator_name(), state="open"))
    print_message(f"Board {name} accepts actions now" if is_changed else f"Board {name} was open")


@board.command()
@click.argument("name", type=BOARD)
@yes_option
@data_dir_option
def delete(*, name: str, yes: bool, data_dir: Path) -> None:
    """Delete the archived board NAME from Redis; its ledger stays in PostgreSQL.

    Services answer 404 for it. It cannot be undone, and the name cannot be used again, because the
    ledger has its actions. Run the command again if it was interrupted.
    """
    settings = load_settings_to_change(data_dir)
    if not yes:
        print_message(f"Board {name} cannot be restored, and its name not be used again.")
        if prompt("Type the name of the board to delete it") != name:
            raise OperatorMistake("The name differs; nothing was deleted")
    with progress() as report:
        actor = operator_name()
        is_changed = asyncio.run(delete_board(settings, name, actor=actor, report=report))
    print_message(f"Board {name} is deleted" if is_changed else f"Board {name} was deleted before")


@board.command()
@click.argument("name", type=BOARD)
@click.option("--partitions", type=click.IntRange(1, PARTITIONS_MAX), required=True,
              help="Number of partitions that the board gets.")  # fmt: skip
@yes_option
@json_option
@data_dir_option
def reshard(*, name: str, partitions: int, yes: bool, as_json: bool, data_dir: Path) -> None:
    """Change the number of partitions of board NAME while it is used.

    The new partitions are loaded from PostgreSQL while the old ones go on. Then updates are
    answered with 503 for about a second, and the change is given up if its rest is not loaded
    within 10 s. Reads are answered, but if the command fails or is killed while the new
    partitions open, they get 503, too. If the command is killed, run it again. Until it has
    ended, other commands and the administrator's page cannot change the board.

    \b
    Example:
      scoreboard board reshard weekly --partitions 4
    """  # noqa: D301
    settings = load_settings_to_change(data_dir)
    if not yes:
        confirm(f"Updates of board {name} will get 503 for about a second at the end. Continue?")
    with progress() as report:
        done = asyncio.run(
            reshard_board(settings, name, partitions, actor=operator_name(), report=report)
        )
    if as_json:
        print_json(done)
        return
    print_message(
        f"Board {name} has {count_partitions(partitions)}: {done.users} users, epoch {done.epoch}, "
        f"{done.duration_s:.1f} s; updates were refused for {done.pause_s:.2f} s"
    )
    if not done.is_listed:
        print_message(
            "The list of boards in Redis could not be changed: the flusher copies it within 30 s"
        )


@board.command(name="list")
@json_option
@data_dir_option
def list_boards(*, as_json: bool, data_dir: Path) -> None:
    """List the boards with their rules, and their numbers of users in Redis."""
    found = asyncio.run(_list(load_settings(data_dir)))
    if as_json:
        print_json([_describe(*one) for one in found])
        return
    print_table(
        (
            *("board", "state", "public", "users", "rules"),
            *("partitions", "seen seconds", "seen shards", "limits"),
        ),
        [
            (
                one.name,
                one.state,
                "yes" if one.is_public else "no",
                users,
                _short_rules(one.layout.rules),
                one.layout.partitions,
                one.layout.seen_seconds,
                one.layout.seen_shards,
                _short_limits(one.limits),
            )
            for one, users in found
        ],
    )


async def _list(settings: Settings) -> list[tuple[Board, int | None]]:
    boards = await _read_boards(settings)
    return list(zip(boards, await _count_users(settings, boards), strict=True))


async def _count_users(settings: Settings, boards: Sequence[Board]) -> Sequence[int | None]:
    """Count the users of boards; None without Redis."""
    try:
        async with open_store(settings) as store:
            return await store.count_users(boards)
    except RedisUnavailable:
        print_message("Redis is unreachable: the numbers of users are unknown")
        return [None] * len(boards)


def _describe(one: Board, users: int | None) -> dict[str, Any]:
    return {**msgspec.to_builtins(one), "users": users}


def _short_limits(limits: Limits) -> str | None:
    """Return the limits in words; None without limits."""
    words = [f"{limits.per_action} per action"] if limits.per_action else []
    if limits.per_window:
        words.append(f"{limits.per_window} in {limits.window_s} s")
    return ", ".join(words) or None


def _short_rules(rules: Rules) -> str:
    """Return operator and order, and the other rules where they are not the default."""
    words = [rules.operator, f"{rules.order} first"]
    if (rules.score_min, rules.score_max) != (RULES.score_min, RULES.score_max):
        words.append(f"{rules.score_min} to {rules.score_max}")
    if rules.lowering != RULES.lowering:
        words.append(f"lowered by {rules.lowering}")
    if rules.points != RULES.points:
        words.append(f"points {rules.points}")
    if rules.season:
        words.append(f"{rules.season} in {rules.time_zone}")
    return ", ".join(words)


@board.command()
@click.argument("name", type=BOARD)
@json_option
@data_dir_option
def show(*, name: str, as_json: bool, data_dir: Path) -> None:
    """Show the rules of board NAME in words, its state, its users and its layout."""
    one, users = asyncio.run(_show(load_settings(data_dir), name))
    if as_json:
        print_json(_describe(one, users))
        return
    rules, layout = one.layout.rules, one.layout
    access = "everyone may read it" if one.is_public else "reading needs a token"
    print_table(
        ("property", "value", "meaning"),
        [
            ("board", one.name, ""),
            ("state", one.state, "accepts actions" if one.state == "open" else "can only be read"),
            ("public", "yes" if one.is_public else "no", access),
            ("users", users, "on the board in Redis"),
            ("operator", rules.operator, _OPERATORS[rules.operator]),
            ("order", rules.order, _ORDERS[rules.order]),
            ("min", rules.score_min, "lowest possible score"),
            ("max", rules.score_max, "highest possible score"),
            ("lowering", rules.lowering, _LOWERING[rules.lowering]),
            ("points", rules.points, _POINTS[rules.points]),
            ("limits", _short_limits(one.limits), "most points of a user; more is held"),
            ("season", rules.season or "none", "when it ends, all scores begin anew"),
            *([("time zone", rules.time_zone, "of the seasons")] if rules.season else []),
            ("partitions", layout.partitions, "slices of the users"),
            ("seen seconds", layout.seen_seconds, "least time for which actions are remembered"),
            ("seen shards", layout.seen_shards, "hashes of remembered actions"),
        ],
    )


async def _show(settings: Settings, name: str) -> tuple[Board, int | None]:
    async with open_database(settings) as connection:
        await require_free_name(connection, name)
        one = await select_board(connection, name)
    (users,) = await _count_users(settings, [one])
    return one, users


@board.command()
@click.argument("file", type=FILE)
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
@json_option
@data_dir_option
def apply(*, file: Path, dry_run: bool, as_json: bool, data_dir: Path) -> None:
    """Create and change boards so that they match FILE (TOML); boards not in it are not touched.

    A file that changes a fixed rule is refused before anything is done. Run the command again if
    it was interrupted.

    \b
    Example of a file:
      [boards.weekly]
      [boards.laps]
      operator = "best"
      order = "lowest"
      points = "stated"
      public = false
    """  # noqa: D301
    settings = load_settings(data_dir) if dry_run else load_settings_to_change(data_dir)
    changes = asyncio.run(_plan(settings, file))
    if as_json:
        print_json([{"board": one.board, "change": one.what} for one in changes])
    else:
        print_table(("board", "change"), [(one.board, one.what) for one in changes])
    if dry_run:
        print_message(f"{len(changes)} changes; nothing was done")
        return
    for one in changes:
        asyncio.run(_apply(settings, one))
    print_message(f"{len(changes)} changes were made" if changes else "Nothing had to be changed")


async def _plan(settings: Settings, file: Path) -> list[Change]:
    async with open_database(settings) as connection:
        existing = {one.name: one for one in await select_boards(connection)}
        changes = board_file.plan_changes(file, existing)
        for one in changes:
            if one.what == "create":
                await require_free_name(connection, one.board)
        planned = {one.board for one in changes}
        return [
            *changes,
            *[
                Change(one.name, "open", one)
                for one in board_file.read_boards(file).values()
                if one.name not in planned and await _is_to_be_opened(settings, connection, one)
            ],
        ]


async def _is_to_be_opened(settings: Settings, connection: Connection, one: Board) -> bool:
    """Return whether an interrupted command has left a new board unopened."""
    async with open_store(settings) as store:
        if (await store.state(Partition(one.name))).epoch:
            return False
    return not await has_scores(connection, one.name)


async def _apply(settings: Settings, change: Change) -> None:
    actor, new = operator_name(), change.new
    if change.what in {"create", "open"}:
        await _create(settings, new, if_missing=True)
    elif change.what in {"publish", "hide"}:
        await change_board(settings, new.name, actor=actor, is_public=new.is_public)
    elif change.what == "limit":
        limits = LimitChange(*msgspec.structs.astuple(new.limits))
        await change_board(settings, new.name, actor=actor, limits=limits)
    else:
        await change_board(settings, new.name, actor=actor, state=new.state)


@board.command()
@data_dir_option
def export(*, data_dir: Path) -> None:
    """Print the boards as a file for `board apply`.

    \b
    Example:
      scoreboard board export > boards.toml
    """  # noqa: D301
    print_lines(board_file.write_boards(asyncio.run(_read_boards(load_settings(data_dir)))))


async def _read_boards(settings: Settings) -> list[Board]:
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
