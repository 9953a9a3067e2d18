"""What the commands of acts have in common: options, preview, question, result."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from msgspec import Struct

from cli.output import confirm, print_json, print_message, print_table
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
from cli.text import find_unsafe
from scoreboard.errors import Invalid
from scoreboard.ledger.acts import select_bans_of
from scoreboard.ledger.boards import select_board, select_boards
from scoreboard.ledger.migrations import require_schema
from scoreboard.ledger.pool import Connection
from scoreboard.model import Board
from scoreboard.moderation.acts import Done, Moderator
from scoreboard.moderation.plans import BanChange, Plan, Request
from scoreboard.moderation.preview import Preview, preview, require_in_bounds
from scoreboard.runtime.settings import Settings
from scoreboard.store.store import Store

REASON_MAX: Final = 500

_Command = TypeVar("_Command", bound=Callable[..., Any])


class Choice(Struct, frozen=True, kw_only=True):
    """The options that all acts have in common."""

    board: str | None
    reason: str
    dry_run: bool
    yes: bool
    as_json: bool
    data_dir: Path


class Result(Struct, frozen=True, rename="camel"):
    """What `--json` prints of an act: its plan, the places, and the act unless it is a dry run."""

    board: str
    kind: str
    delta: int
    preview: Preview
    act: str | None = None
    score: int | None = None
    committed: bool | None = None


class Session(Struct, frozen=True):
    """The stores and the board of a command."""

    store: Store
    connection: Connection
    board: Board
    moderator: Moderator


def act_options(command: _Command) -> _Command:
    """Add the options of ``Choice``."""
    command = data_dir_option(json_option(yes_option(command)))
    command = click.option("--dry-run", is_flag=True, help="Show who moves where; change nothing.")(
        command
    )
    command = click.option("--reason", required=True, callback=check_reason,
                           help="Why; it is kept with the act.")(command)  # fmt: skip
    return board_option(command)


def perform(request: Request, choice: Choice) -> None:
    """Plan a request, show it, ask, perform it and print the result."""
    settings = load_settings_to_change(choice.data_dir)
    name = board_or_default(settings, choice.board)
    board, plan, found = asyncio.run(_plan(settings, name, request))
    result = Result(board.name, plan.kind, plan.delta, found)
    if not choice.as_json:
        _print_preview(board, plan, found)
    if choice.dry_run:
        if choice.as_json:
            print_json(result)
        return
    if not choice.yes:
        confirm(f"{describe(plan)}?")
    done = asyncio.run(_perform(settings, name, request, plan, choice.reason))
    if choice.as_json:
        print_json(
            Result(
                board.name, plan.kind, plan.delta, found, done.act_id, done.score, done.is_committed
            )
        )
    print_done(plan.user_id, done)


def perform_everywhere(request: BanChange, choice: Choice) -> None:
    """Change a ban on every board; boards on which it is so already are only repaired."""
    settings = load_settings_to_change(choice.data_dir)
    names = asyncio.run(_board_names(settings))
    if not (choice.yes or choice.dry_run):
        plan = Plan(kind=request.kind, user_id=request.user_id)
        confirm(f"{describe(plan)} on {len(names)} boards?")
    changed: list[dict[str, str | None]] = []
    for name in names:
        act_id = asyncio.run(
            _change_ban(settings, name, request, choice.reason, is_dry=choice.dry_run)
        )
        changed.append({"board": name, "act": act_id})
    if choice.as_json:
        print_json(changed)
    else:
        print_table(
            ("board", "act"), [(one["board"], one["act"] or "unchanged") for one in changed]
        )


async def _board_names(settings: Settings) -> list[str]:
    async with open_database(settings) as connection:
        await require_schema(connection)
        boards = await select_boards(connection)
        return [board.name for board in boards if board.state == "open"]


async def _change_ban(
    settings: Settings, name: str, request: BanChange, reason: str, *, is_dry: bool
) -> str | None:
    """Change a ban on a board; return the act, None if it is so already."""
    async with open_session(settings, name) as session:
        held = await select_bans_of(session.connection, name, [request.user_id])
        if bool(held) == (request.kind == "ban"):
            if not is_dry:  # an earlier run may have been interrupted
                await session.moderator.mirror_ban(request.user_id)
            return None
        if is_dry:
            return "would change"
        plan = await session.moderator.plan(request)
        return (await session.moderator.perform(request, plan, reason=reason)).act_id


def describe(plan: Plan) -> str:
    """Say what a plan does."""
    match plan.kind:
        case "ban":
            return f"Ban {plan.user_id}"
        case "unban":
            return f"End the ban of {plan.user_id}"
        case "release":
            return f"Release {plan.detail['action']} of {plan.user_id} ({plan.delta:+})"
        case "void" | "void window":
            count = len(plan.actions)
            actions = "1 action" if count == 1 else f"{count} actions"
            return f"Void {actions} of {plan.user_id} ({plan.delta:+})"
        case _:
            return f"Change the score of {plan.user_id} by {plan.delta:+}"


def print_done(user_id: str, done: Done) -> None:
    """Report an act that was applied."""
    score = "" if done.score is None else f", {user_id} has {done.score} points"
    waits = "" if done.is_committed else "; it waits for the flusher to commit it to PostgreSQL"
    print_message(f"Act {done.act_id} applied{score}{waits}")


@asynccontextmanager
async def open_session(settings: Settings, name: str) -> AsyncIterator[Session]:
    """Yield the stores and a moderator of a board.

    Raises UnknownBoard, SchemaMismatch, DatabaseUnavailable.
    """
    async with open_store(settings) as store, open_database(settings) as connection:
        await require_schema(connection)
        board = await select_board(connection, name)
        moderator = Moderator(
            store, connection, board, actor=operator_name(), stream_cap=settings.stream_cap
        )
        yield Session(store, connection, board, moderator)


async def _plan(settings: Settings, name: str, request: Request) -> tuple[Board, Plan, Preview]:
    async with open_session(settings, name) as session:
        board = session.board
        plan = await session.moderator.plan(request)
        found = await preview(session.store, session.connection, board, plan)
    require_in_bounds(board, plan, found)
    return board, plan, found


async def _perform(
    settings: Settings, name: str, request: Request, plan: Plan, reason: str
) -> Done:
    async with open_session(settings, name) as session:
        return await session.moderator.perform(request, plan, reason=reason)


def _print_preview(board: Board, plan: Plan, found: Preview) -> None:
    rows: list[tuple[object, ...]] = []
    for index in range(max(len(found.top_before), len(found.top_after))):
        pair = [
            (top[index].user_id, top[index].score) if index < len(top) else (None, None)
            for top in (found.top_before, found.top_after)
        ]
        rows.append((index + 1, *pair[0], *pair[1]))
    if found.top_before != found.top_after:
        print_table(("rank", "before", "score", "after", "score"), rows)
    before, after = found.before, found.after
    print_message(
        f"Board {board.name}: {describe(plan)}: score {_or_none(before.score)} → "
        f"{_or_none(after.score)}, rank {_or_none(before.rank)} → {_or_none(after.rank)}"
    )


def _or_none(number: int | None) -> str:
    return "none" if number is None else str(number)


def check_reason(_context: click.Context, _parameter: click.Parameter, reason: str) -> str:
    """Return a reason as it was given.

    Raises Invalid.
    """
    if not reason.strip() or len(reason) > REASON_MAX:
        raise Invalid(f"--reason must have 1 to {REASON_MAX} characters")
    if unsafe := find_unsafe(reason):
        raise Invalid(f"--reason contains a {unsafe}")
    return reason
