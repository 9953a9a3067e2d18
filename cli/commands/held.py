"""`scoreboard held`: list, release and void actions that exceeded a limit of their board."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, get_args

import click
from msgspec import Struct

from cli.failures import detail_of
from cli.moderation import Session, act_options, open_session
from cli.output import confirm, print_json, print_message, print_table
from cli.parameters import BOARD, MOMENT, USER_ID
from cli.target import (
    DATABASE_URL,
    board_or_default,
    data_dir_option,
    json_option,
    load_settings,
    load_settings_to_change,
    open_database,
)
from scoreboard.errors import ClientError, ScoreboardError
from scoreboard.events import BIGINT_MAX
from scoreboard.ledger.held import (
    HeldAction,
    HeldFilter,
    HeldState,
    select_held,
    select_held_action,
)
from scoreboard.ledger.migrations import require_schema
from scoreboard.model import LimitKind
from scoreboard.moderation.plans import Release, require_held
from scoreboard.moderation.preview import Preview, preview
from scoreboard.runtime.settings import Settings

SELECTED_MAX: Final = 100
"""Maximum number of actions of one run: each release waits for its commit."""

REFUSED: Final = 5
ALL: Final = "all"


class Selection(Struct, frozen=True, kw_only=True):
    """The options that `release` and `void` have in common."""

    ids: Sequence[int]
    user_id: str | None
    board: str | None
    reason: str
    dry_run: bool
    yes: bool
    as_json: bool
    data_dir: Path
    in_current_season: bool = False


class Result(Struct, frozen=True, kw_only=True, rename="camel"):
    """What happened, or would happen, to a held action.

    ``outcome``: ``released``, ``voided``, ``refused`` (``detail`` says why), ``unknown`` (a server
    went away: see ``held list``), or in a dry run ``would be released`` or ``would be voided``.
    """

    id: int
    outcome: str
    user_id: str | None = None
    action_id: str | None = None
    delta: int | None = None
    act: str | None = None
    score: int | None = None
    committed: bool | None = None
    preview: Preview | None = None
    detail: str = ""


Decide = Callable[[Session, int], Awaitable[Result]]


@click.group()
def held() -> None:
    """List, release and void actions that exceeded a limit of their board."""


@held.command(name="list")
@click.option("--board", type=BOARD, help="Actions of this board.")
@click.option("--user", "user_id", type=USER_ID, help="Actions of this user.")
@click.option("--exceeds", type=click.Choice(get_args(LimitKind)), help="Actions that exceeded "
              "this limit.")  # fmt: skip
@click.option("--since", type=MOMENT, help="First time, such as 2026-07-01 or "
              "2026-07-01T08:30:00Z; UTC without a zone.")  # fmt: skip
@click.option("--state", type=click.Choice([*get_args(HeldState), ALL]), default="held",
              show_default=True, help="What was decided: pending ones are being "
              "released.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True,
              help="Number of rows.")  # fmt: skip
@json_option
@data_dir_option
def list_held(
    *,
    board: str | None,
    user_id: str | None,
    exceeds: LimitKind | None,
    since: datetime | None,
    state: Any,  # noqa: ANN401 (a state or ALL)
    limit: int,
    as_json: bool,
    data_dir: Path,
) -> None:
    """List held actions, oldest first: those that wait for a decision, or --state."""
    settings = load_settings(data_dir, [DATABASE_URL])
    chosen = HeldFilter(
        board=board,
        user_id=user_id,
        limit_kind=exceeds,
        since=since,
        state=None if state == ALL else state,
    )
    found = asyncio.run(_list(settings, chosen, limit))
    if as_json:
        print_json(found)
        return
    columns = ("id", "time", "board", "user", "action", "points", "exceeds", "state", "by",
               "season")  # fmt: skip
    print_table(columns, [_row(one) for one in found])
    if len(found) == limit:
        print_message(f"Only the first {limit} actions are listed; use --limit for more")


def _selection_options(command: Callable[..., int]) -> Callable[..., int]:
    """Add the options of ``Selection``."""
    command = act_options(command)
    for option in (
        click.option("--user", "user_id", type=USER_ID, help="All that are held of this user."),
        click.argument("ids", nargs=-1, type=click.IntRange(1, BIGINT_MAX), metavar="[ID]…"),
    ):
        command = option(command)
    return command


@held.command()
@click.option("--in-current-season", is_flag=True, help="Let actions that were held in an earlier "
              "season count in the current one.")  # fmt: skip
@_selection_options
def release(**selected: Any) -> int:  # noqa: ANN401 (Selection's fields)
    """Release held actions: each counts once, as an act.

    The points are added now, so the user ranks last among equal scores; the window of a limit does
    not count them. On a board with values the score becomes the value, if that is better or the
    board keeps the last one. A repeat of the action still gets its first answer. At most 100 are
    released at once. `act undo` reverses a release, and the action is held again. An action of
    a season that is over is refused, unless --in-current-season is given.

    \b
    Examples:
      scoreboard held release 17 18 --reason "checked"
      scoreboard held release --user alice --reason "tournament" --dry-run
    """  # noqa: D301
    selection = Selection(**selected)

    async def decide(session: Session, held_id: int) -> Result:
        one = await select_held_action(session.connection, session.board.name, held_id)
        request = Release(held_id, selection.in_current_season)
        plan = await session.moderator.plan(request)
        shown = await preview(session.store, session.connection, session.board, plan)
        known: dict[str, Any] = {"user_id": one.user_id, "action_id": one.action_id}
        known |= {"id": held_id, "delta": plan.delta, "preview": shown}
        if selection.dry_run:
            return Result(outcome="would be released", score=shown.after.score, **known)
        done = await session.moderator.perform(request, plan, reason=selection.reason)
        return Result(
            outcome="released",
            act=done.act_id,
            score=done.score,
            committed=done.is_committed,
            detail="" if done.is_committed else "it waits for the flusher",
            **known,
        )

    return _run(selection, decide, question="Release {}?")


@held.command()
@_selection_options
def void(**selected: Any) -> int:  # noqa: ANN401 (Selection's fields)
    """Void held actions, each once: they never count.

    It cannot be undone. At most 100 are voided at once.

    \b
    Example:
      scoreboard held void --user mallory --reason "sent by a bot"
    """  # noqa: D301
    selection = Selection(**selected)

    async def decide(session: Session, held_id: int) -> Result:
        one = await select_held_action(session.connection, session.board.name, held_id)
        known: dict[str, Any] = {"user_id": one.user_id, "action_id": one.action_id}
        known |= {"id": held_id, "delta": one.delta}
        if selection.dry_run:
            require_held(one)
            return Result(outcome="would be voided", **known)
        await session.moderator.void_held(held_id, reason=selection.reason)
        return Result(outcome="voided", **known)

    return _run(selection, decide, question="Void {} permanently?")


def _run(selection: Selection, decide: Decide, *, question: str) -> int:
    """Decide on the actions one by one, print the results and return the exit code."""
    if bool(selection.ids) == (selection.user_id is not None):
        raise click.UsageError("Give either IDs of held actions or --user")
    ids = list(dict.fromkeys(selection.ids))
    if len(ids) > SELECTED_MAX:
        raise click.UsageError(f"At most {SELECTED_MAX} actions at once")
    settings = load_settings_to_change(selection.data_dir)
    name = board_or_default(settings, selection.board)
    if selection.user_id is not None:
        chosen = HeldFilter(board=name, user_id=selection.user_id, state="held")
        found = asyncio.run(_list(settings, chosen, SELECTED_MAX))
        ids = [one.id for one in found]
        if len(ids) == SELECTED_MAX:
            print_message(f"Only the first {SELECTED_MAX} actions are selected; run it again")
    if ids and not (selection.yes or selection.dry_run):
        confirm(question.format("1 action" if len(ids) == 1 else f"{len(ids)} actions"))
    done: list[Result] = []
    try:
        asyncio.run(_decide(settings, name, ids, decide, done))
    finally:  # also after an error, because what was decided stays so
        _print(done, as_json=selection.as_json)
    refused = sum(one.outcome == "refused" for one in done)
    print_message(f"Board {name}: {len(done) - refused} of {len(ids)} actions, {refused} refused")
    return REFUSED if refused else 0


async def _decide(
    settings: Settings, name: str, ids: Sequence[int], decide: Decide, done: list[Result]
) -> None:
    for held_id in ids:
        async with open_session(settings, name) as session:
            try:
                done.append(await decide(session, held_id))
            except ClientError as error:
                done.append(Result(id=held_id, outcome="refused", detail=detail_of(error)))
            except ScoreboardError as error:
                done.append(Result(id=held_id, outcome="unknown", detail=detail_of(error)))
                raise


def _print(done: Sequence[Result], *, as_json: bool) -> None:
    if as_json:
        print_json(done)
        return
    columns = ("id", "outcome", "user", "action", "points", "score", "rank", "act", "detail")
    print_table(
        columns,
        [
            (
                *(one.id, one.outcome, one.user_id, one.action_id, one.delta, one.score),
                one.preview.after.rank if one.preview else None,
                *(one.act, one.detail),
            )
            for one in done
        ],
    )


async def _list(settings: Settings, chosen: HeldFilter, limit: int) -> list[HeldAction]:
    async with open_database(settings) as connection:
        await require_schema(connection)
        return await select_held(connection, chosen, limit=limit)


def _row(one: HeldAction) -> tuple[object, ...]:
    time = one.occurred_at.isoformat(timespec="seconds")
    by = one.voided_by if one.state == "voided" else one.act_id if one.state != "held" else None
    return (
        one.id,
        time,
        one.board,
        one.user_id,
        one.action_id,
        one.delta,
        one.limit,
        one.state,
        by,
        one.season,
    )
