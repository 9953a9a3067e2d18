"""`scoreboard dead`: list, apply and discard dead letters.

The flusher moves an entry of the stream that it cannot read or store to `dead_events`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import click
from msgspec import Struct

from cli.failures import detail_of
from cli.output import confirm, print_json, print_message, print_table, progress
from cli.parameters import ACTION_ID, USER_ID
from cli.target import (
    DATABASE_URL,
    board_option,
    board_or_default,
    data_dir_option,
    json_option,
    load_settings,
    load_settings_to_change,
    open_database,
    operator_name,
    yes_option,
)
from cli.text import find_unsafe
from scoreboard.errors import ClientError, NotFound
from scoreboard.events import BIGINT_MAX
from scoreboard.ledger import dead_letters
from scoreboard.ledger.boards import select_board
from scoreboard.ledger.dead_letters import Entry, Overrides, Resolved
from scoreboard.ledger.migrations import require_schema
from scoreboard.ledger.pool import Connection
from scoreboard.model import POINTS_MAX, Board
from scoreboard.recovery.reseed import ReportProgress
from scoreboard.runtime.settings import Settings

NOT_FOUND: Final = 3
REFUSED: Final = 5
REASON_MAX: Final = 500
ALL_MAX: Final = 10_000
"""Maximum number of entries of one run."""

Resolve = Callable[[Connection, Board, int], Awaitable[Resolved]]


class Selection(Struct, frozen=True, kw_only=True):
    """The options that `apply` and `discard` have in common."""

    ids: Sequence[int]
    everything: bool
    board: str | None
    dry_run: bool
    yes: bool
    as_json: bool
    data_dir: Path


def _selection_options(command: Callable[..., int]) -> Callable[..., int]:
    """Add the options of ``Selection``."""
    command = data_dir_option(json_option(yes_option(command)))
    for option in (
        click.option("--dry-run", is_flag=True, help="Show the changes without making them."),
        board_option,
        click.option("--all", "everything", is_flag=True, help="Select every dead letter."),
        click.argument("ids", nargs=-1, type=click.IntRange(1, BIGINT_MAX), metavar="[ID]…"),
    ):
        command = option(command)
    return command


@click.group()
def dead() -> None:
    """List, apply and discard dead letters of the stream."""


@dead.command(name="list")
@board_option
@click.option("--resolved", is_flag=True, help="List resolved entries, newest first.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True,
              help="Maximum number of entries to list.")  # fmt: skip
@json_option
@data_dir_option
def list_dead(
    *, board: str | None, resolved: bool, limit: int, as_json: bool, data_dir: Path
) -> None:
    """List entries that the flusher could not read or store."""
    settings = load_settings(data_dir, needs=(DATABASE_URL,))
    found = asyncio.run(
        _list(settings, board_or_default(settings, board), limit, resolved=resolved)
    )
    if as_json:
        print_json(found)
        return
    columns = ("id", "partition", "stream id", "recorded at", "user", "action", "points", "reason")
    rows = [
        (
            one.id,
            one.partition,
            one.stream_id,
            f"{one.recorded_at:%Y-%m-%dT%H:%M:%SZ}",
            one.user_id,
            "(correction)" if one.is_correction else one.action_id,
            one.delta,
            one.reason,
            *((one.resolution, one.resolved_by, one.resolved_reason) if resolved else ()),
        )
        for one in found
    ]
    print_table((*columns, "resolution", "by", "comment") if resolved else columns, rows)
    if len(found) == limit:
        print_message(f"Only the first {limit} entries are listed; use --limit for more")


async def _list(settings: Settings, name: str, limit: int, *, resolved: bool) -> list[Entry]:
    async with open_database(settings) as connection:
        await require_schema(connection)
        await select_board(connection, name)
        if resolved:
            return await dead_letters.select_resolved(connection, name, limit=limit)
        return await dead_letters.select_entries(connection, name, after=0, limit=limit)


@dead.command()
@click.option("--user", "user_id", type=USER_ID, help="User id of an unreadable entry.")
@click.option("--action", "action_id", type=ACTION_ID, help="Action id of an unreadable entry.")
@click.option("--delta", type=click.IntRange(1, POINTS_MAX), help="Points of an unreadable entry.")
@_selection_options
def apply(
    *,
    user_id: str | None,
    action_id: str | None,
    delta: int | None,
    **selected: Any,  # noqa: ANN401 (Selection's fields)
) -> int:
    """Write dead letters to the ledger, each exactly once.

    Use --user, --action and --delta for the missing fields of an unreadable entry. An entry that
    cannot be stored stays a dead letter, and the command exits with 5.

    \b
    Examples:
      scoreboard dead apply 17 18
      scoreboard dead apply --all --dry-run
      scoreboard dead apply 19 --user alice --action win:7 --delta 10
    """  # noqa: D301
    selection = Selection(**selected)
    overrides = Overrides(user_id, action_id, delta)
    if overrides != Overrides() and (selection.everything or len(selection.ids) != 1):
        raise click.UsageError("--user, --action and --delta need exactly one ID")
    actor = operator_name()

    async def resolve(connection: Connection, board: Board, entry_id: int) -> Resolved:
        return await dead_letters.apply(
            connection, board, entry_id, actor=actor, overrides=overrides, is_dry=selection.dry_run
        )

    return _run(selection, resolve, question="Write {} to the ledger?")


@dead.command()
@click.option("--reason", required=True, help="Reason; kept with the entry and in the audit log.")
@_selection_options
def discard(
    *,
    reason: str,
    **selected: Any,  # noqa: ANN401 (Selection's fields)
) -> int:
    """Discard dead letters permanently; they never count.

    Redis has already counted them, so the flusher lowers the scores of their users within seconds.

    \b
    Examples:
      scoreboard dead discard 17 --reason "written by a test"
      scoreboard dead discard --all --reason "invalid data of 3 May" --dry-run
    """  # noqa: D301
    if not reason.strip() or len(reason) > REASON_MAX:
        raise click.BadParameter(f"--reason must have 1 to {REASON_MAX} characters")
    if unsafe := find_unsafe(reason):
        raise click.BadParameter(f"--reason contains a {unsafe}")
    selection = Selection(**selected)
    actor = operator_name()

    async def resolve(connection: Connection, board: Board, entry_id: int) -> Resolved:
        return await dead_letters.discard(
            connection, board, entry_id, actor=actor, reason=reason, is_dry=selection.dry_run
        )

    return _run(selection, resolve, question="Discard {} permanently?")


def _run(selection: Selection, resolve: Resolve, *, question: str) -> int:
    """Resolve the entries one by one, print the outcomes and return the exit code."""
    if selection.everything == bool(selection.ids):
        raise click.UsageError("Give either IDs of entries or --all")
    settings = load_settings_to_change(selection.data_dir, needs=(DATABASE_URL,))
    name = board_or_default(settings, selection.board)
    if not (selection.yes or selection.dry_run):
        count = "every dead letter" if selection.everything else f"{len(selection.ids)} entries"
        confirm(question.format(count))
    ids = None if selection.everything else selection.ids
    with progress() as report:
        done = asyncio.run(_resolve(settings, name, ids, resolve, report))
    if selection.as_json:
        print_json(done)
    else:
        columns = ("id", "outcome", "user", "action", "points", "detail")
        rows = [
            (one.id, one.outcome, one.user_id, one.action_id, one.delta, one.detail) for one in done
        ]
        print_table(columns, rows)
    refused = sum(one.outcome == "refused" for one in done)
    unknown = sum(one.outcome == "unknown" for one in done)
    would = "would be " if selection.dry_run else ""
    print_message(
        f"Board {name}: {len(done) - refused - unknown} entries {would}resolved, "
        f"{refused} {would}refused, {unknown} unknown"
    )
    if unknown:
        return NOT_FOUND
    return REFUSED if refused else 0


async def _resolve(
    settings: Settings,
    name: str,
    ids: Sequence[int] | None,
    resolve: Resolve,
    report: ReportProgress,
) -> list[Resolved]:
    done: list[Resolved] = []
    async with open_database(settings) as connection:
        await require_schema(connection)
        board = await select_board(connection, name)
        await dead_letters.lock_board(connection, board)
        chosen = dead_letters.select_ids(connection, name) if ids is None else _each(ids)
        async for entry_id in chosen:
            if len(done) == ALL_MAX:
                print_message(f"{ALL_MAX} entries processed; run the command again for the rest")
                break
            try:
                done.append(await resolve(connection, board, entry_id))
            except NotFound as error:
                done.append(Resolved(id=entry_id, outcome="unknown", detail=detail_of(error)))
            except ClientError as error:
                done.append(Resolved(id=entry_id, outcome="refused", detail=detail_of(error)))
            report("entries", len(done), len(ids or ()))
    return done


async def _each(ids: Sequence[int]) -> AsyncIterator[int]:
    for entry_id in dict.fromkeys(ids):
        yield entry_id
