"""`scoreboard dead`: entries that the flusher could not read or store, and what becomes of them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import click

from cli.output import confirm, print_json, print_message, print_table, progress
from cli.target import (
    DATABASE_URL,
    board_option,
    board_or_default,
    data_dir_option,
    load_settings,
    load_settings_to_change,
    open_database,
    operator_name,
)
from cli.text import find_unsafe
from scoreboard.errors import ClientError, NotFound
from scoreboard.events import BIGINT_MAX
from scoreboard.ledger import dead_letters
from scoreboard.ledger.boards import select_board
from scoreboard.ledger.dead_letters import Entry, Overrides, Resolved
from scoreboard.ledger.migrations import require_current
from scoreboard.ledger.pool import Connection
from scoreboard.model import POINTS_MAX, Board
from scoreboard.recovery.reseed import ReportProgress
from scoreboard.runtime.settings import Settings

NOT_FOUND: Final = 3
REFUSED: Final = 5
REASON_MAX: Final = 500
ALL_MAX: Final = 10_000
"""Most entries of one run."""

Resolve = Callable[[Connection, Board, int], Awaitable[Resolved]]

_ids = click.argument("ids", nargs=-1, type=click.IntRange(1, BIGINT_MAX), metavar="[ID]…")
_all = click.option("--all", "everything", is_flag=True, help="Every entry that is not resolved.")
_dry_run = click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
_yes = click.option("--yes", is_flag=True, help="Do not ask.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def dead() -> None:
    """List parked entries of the stream, and apply or discard them."""


@dead.command(name="list")
@board_option
@click.option("--resolved", is_flag=True, help="Those that are resolved, newest first.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True,
              help="Most entries listed.")  # fmt: skip
@_json
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
    columns = ("id", "partition", "stream id", "parked at", "user", "action", "points", "reason")
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
    print_table((*columns, "became", "by", "because") if resolved else columns, rows)
    if len(found) == limit:
        print_message(f"The first {limit} are listed; --limit lists more")


async def _list(settings: Settings, name: str, limit: int, *, resolved: bool) -> list[Entry]:
    async with open_database(settings) as connection:
        await require_current(connection)
        await select_board(connection, name)
        if resolved:
            return await dead_letters.select_resolved(connection, name, limit=limit)
        return await dead_letters.select_entries(connection, name, after=0, limit=limit)


@dead.command()
@_ids
@_all
@board_option
@click.option("--user", "user_id", help="The user of an entry that cannot be read.")
@click.option("--action", "action_id", help="Its action.")
@click.option("--delta", type=click.IntRange(1, POINTS_MAX), help="Its points.")
@_dry_run
@_yes
@_json
@data_dir_option
def apply(
    *,
    ids: Sequence[int],
    everything: bool,
    board: str | None,
    user_id: str | None,
    action_id: str | None,
    delta: int | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    data_dir: Path,
) -> int:
    """Count parked actions: each gets its row of the ledger, once.

    An entry that still cannot be stored stays parked, and the command exits with 5. For an entry
    that cannot be read, --user, --action and --delta state what is missing.

    \b
    Examples:
      scoreboard dead apply 17 18
      scoreboard dead apply --all --dry-run
      scoreboard dead apply 19 --user alice --action win:7 --delta 10
    """  # noqa: D301
    overrides = Overrides(user_id, action_id, delta)
    if overrides != Overrides() and (everything or len(ids) != 1):
        raise click.UsageError("--user, --action and --delta are for one entry: give its ID")
    actor = operator_name()

    async def resolve(connection: Connection, found: Board, entry_id: int) -> Resolved:
        return await dead_letters.apply(
            connection, found, entry_id, actor=actor, overrides=overrides, is_dry=dry_run
        )

    return _run(
        data_dir,
        board,
        ids,
        resolve,
        question="Count {} in the ledger?",
        everything=everything,
        is_asking=not (yes or dry_run),
        as_json=as_json,
        is_dry=dry_run,
    )


@dead.command()
@_ids
@_all
@board_option
@click.option("--reason", required=True, help="Why; kept with the entry and in the audit log.")
@_dry_run
@_yes
@_json
@data_dir_option
def discard(
    *,
    ids: Sequence[int],
    everything: bool,
    board: str | None,
    reason: str,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    data_dir: Path,
) -> int:
    """Give parked entries up for good: they never count.

    Redis has counted them. The flusher lowers the scores of their users to what is due, within
    seconds.

    \b
    Examples:
      scoreboard dead discard 17 --reason "written by a test"
      scoreboard dead discard --all --reason "rubbish of 3 May" --dry-run
    """  # noqa: D301
    if not reason.strip() or len(reason) > REASON_MAX:
        raise click.BadParameter(f"--reason is 1 to {REASON_MAX} characters")
    if harmful := find_unsafe(reason):
        raise click.BadParameter(f"--reason has a {harmful}")
    actor = operator_name()

    async def resolve(connection: Connection, found: Board, entry_id: int) -> Resolved:
        return await dead_letters.discard(
            connection, found, entry_id, actor=actor, reason=reason, is_dry=dry_run
        )

    return _run(
        data_dir,
        board,
        ids,
        resolve,
        question="Discard {} for good?",
        everything=everything,
        is_asking=not (yes or dry_run),
        as_json=as_json,
        is_dry=dry_run,
    )


def _run(
    data_dir: Path,
    board: str | None,
    ids: Sequence[int],
    resolve: Resolve,
    *,
    question: str,
    everything: bool,
    is_asking: bool,
    as_json: bool,
    is_dry: bool,
) -> int:
    """Resolve entries one by one, print what became of each, and give the exit code."""
    if everything == bool(ids):
        raise click.UsageError("Give the IDs of entries, or --all")
    settings = load_settings_to_change(data_dir, needs=(DATABASE_URL,))
    name = board_or_default(settings, board)
    if is_asking:
        confirm(question.format("every parked entry" if everything else f"{len(ids)} entries"))
    with progress() as report:
        done = asyncio.run(_resolve(settings, name, None if everything else ids, resolve, report))
    if as_json:
        print_json(done)
    else:
        columns = ("id", "outcome", "user", "action", "points", "detail")
        rows = [
            (one.id, one.outcome, one.user_id, one.action_id, one.delta, one.detail) for one in done
        ]
        print_table(columns, rows)
    refused = sum(one.outcome == "refused" for one in done)
    unknown = sum(one.outcome == "unknown" for one in done)
    would = "would be " if is_dry else ""
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
        await require_current(connection)
        board = await select_board(connection, name)
        await dead_letters.lock_board(connection, board)
        chosen = dead_letters.select_ids(connection, name) if ids is None else _each(ids)
        async for entry_id in chosen:
            if len(done) == ALL_MAX:
                print_message(f"{ALL_MAX} entries are done; run it again for the rest")
                break
            try:
                done.append(await resolve(connection, board, entry_id))
            except NotFound as error:
                done.append(Resolved(id=entry_id, outcome="unknown", detail=error.detail))
            except ClientError as error:
                done.append(Resolved(id=entry_id, outcome="refused", detail=error.detail))
            report("entries", len(done), len(ids or ()))
    return done


async def _each(ids: Sequence[int]) -> AsyncIterator[int]:
    for entry_id in dict.fromkeys(ids):
        yield entry_id
