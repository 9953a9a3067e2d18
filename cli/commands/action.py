"""`scoreboard action`: the catalogue: the points of kinds, and who may send them; voids an action.

A change is written to PostgreSQL with a row in the audit log, then copied to Redis and announced;
every api applies it without a restart.
"""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from cli.administration import audit_kind, publish_catalogue
from cli.moderation import Choice, act_options, perform
from cli.output import print_json, print_message, print_table
from cli.parameters import ACTION_ID, BOARD, KIND, SCOPE, USER_ID
from cli.target import (
    data_dir_option,
    json_option,
    load_settings,
    load_settings_to_change,
    open_database,
    operator_name,
)
from scoreboard.errors import NotFound
from scoreboard.ledger.actions import (
    Kind,
    KindChange,
    disable_action,
    insert_action,
    select_actions,
    upsert_action,
)
from scoreboard.ledger.audit import audited
from scoreboard.ledger.boards import select_board
from scoreboard.model import ACT_KIND, BOARDS_MAX, POINTS_MAX
from scoreboard.moderation.plans import Void
from scoreboard.runtime.settings import Settings


@click.group()
def action() -> None:
    """List kinds of actions; set their points, and who may send them; void an action."""


@action.command(name="list")
@json_option
@data_dir_option
def list_actions(*, as_json: bool, data_dir: Path) -> None:
    """List the kinds of actions with their points."""
    found = asyncio.run(_list(load_settings(data_dir)))
    if as_json:
        print_json(found)
    else:
        rows = [(one.kind, one.points, _describe(one)) for one in found]
        print_table(("kind", "points", "counts"), rows)


@action.command()
@click.argument("kind")
@json_option
@data_dir_option
def show(*, kind: str, as_json: bool, data_dir: Path) -> None:
    """Show what KIND earns, who may send it, and where it counts."""
    found = asyncio.run(_show(load_settings(data_dir), kind))
    if as_json:
        print_json(found)
        return
    facts = {
        "kind": found.kind,
        "points": found.points,
        "counts": "yes" if found.enabled else "no",
        "scope": found.scope or None,
        "boards": ", ".join(found.boards) or None,
        "proof": "required" if found.needs_proof else "not required",
        "updatedAt": found.updated_at,
    }
    print_table(("field", "value"), list(facts.items()))


@action.command(name="set")
@click.argument("kind", type=KIND)
@click.argument("points", type=click.IntRange(1, POINTS_MAX))
@click.option("--scope", type=SCOPE, help="Scope that the token of the caller needs.")
@click.option("--no-scope", is_flag=True, help="Require no scope of its own any more.")
@click.option("--board", "boards", type=BOARD, multiple=True,
              help="Board on which the action counts if the request names none; can be "
              "repeated.")  # fmt: skip
@click.option("--no-board", is_flag=True, help="Count on the default board again.")
@click.option("--proof/--no-proof", "needs_proof", default=None,
              help="Count only with a proof of a game server, or without.")  # fmt: skip
@click.option("--if-missing", is_flag=True, help="Do not change a kind that exists.")
@data_dir_option
def set_action(
    *,
    kind: str,
    points: int,
    scope: str | None,
    no_scope: bool,
    boards: Sequence[str],
    no_board: bool,
    needs_proof: bool | None,
    if_missing: bool,
    data_dir: Path,
) -> None:
    """Set the points of actions of KIND, and who may send them.

    What is not given does not change. Actions that were already counted keep their points, even if
    they are sent again.

    \b
    Examples:
      scoreboard action set win 50
      scoreboard action set raid 250 --scope scores:raid --proof
    """  # noqa: D301
    if kind == ACT_KIND:
        raise click.UsageError(f"{kind} is the kind of administrators' acts")
    if (scope and no_scope) or (boards and no_board):
        raise click.UsageError("Give --scope or --no-scope, and --board or --no-board")
    if len(boards) > BOARDS_MAX or len(set(boards)) < len(boards):
        raise click.UsageError(f"An action counts on at most {BOARDS_MAX} different boards")
    change = KindChange(
        points,
        scope="" if no_scope else scope,
        boards=tuple(boards) if boards or no_board else None,
        needs_proof=needs_proof,
    )
    settings = load_settings_to_change(data_dir)
    if asyncio.run(_set(settings, kind, change, if_missing=if_missing)):
        print_message(f"Actions of kind {kind} now count {points} points")
    else:
        print_message(f"Kind {kind} exists and was not changed")


@action.command()
@click.argument("kind")
@data_dir_option
def disable(*, kind: str, data_dir: Path) -> None:
    """Reject actions of KIND until `action set` enables it again."""
    asyncio.run(_disable(load_settings_to_change(data_dir), kind))
    print_message(f"Actions of kind {kind} are now rejected")


@action.command()
@click.argument("action_id", type=ACTION_ID)
@click.option("--user", "user_id", type=USER_ID, required=True, help="Whose action.")
@act_options
def void(*, action_id: str, user_id: str, **chosen: Any) -> None:  # noqa: ANN401 (Choice's fields)
    """Take back what the action ACTION_ID of a user counted, once.

    The action stays in the ledger; a repeat of it still gets its first answer and counts nothing.
    On a board that keeps the best value, the score falls by what the action added.

    \b
    Example:
      scoreboard action void win:7 --user alice --reason "sent by a bot" --dry-run
    """  # noqa: D301
    perform(Void(user_id, action_id), Choice(**chosen))


async def _list(settings: Settings) -> list[Kind]:
    async with open_database(settings) as connection:
        return await select_actions(connection)


async def _show(settings: Settings, kind: str) -> Kind:
    found = {one.kind: one for one in await _list(settings)}.get(kind)
    if found is None:
        raise NotFound(f"Unknown kind {kind}; see scoreboard action list")
    return found


def _describe(kind: Kind) -> str:
    """Return whether actions of a kind count, and under which conditions."""
    return "; ".join(_conditions(kind)) or "yes" if kind.enabled else "no"


def _conditions(kind: Kind) -> Iterator[str]:
    if kind.scope:
        yield f"with scope {kind.scope}"
    if kind.needs_proof:
        yield "with a proof"
    if kind.boards:
        yield f"on {', '.join(kind.boards)}"


async def _set(settings: Settings, kind: str, change: KindChange, *, if_missing: bool) -> bool:
    async with open_database(settings) as connection:
        for board in change.boards or ():
            await select_board(connection, board)  # exists
        async with audited(connection) as trail:
            if if_missing:
                found = await insert_action(connection, kind, change)
            else:
                found = await upsert_action(connection, kind, change)
            if found is None:
                return False
            await audit_kind(trail, found, actor=operator_name())
        await publish_catalogue(settings, connection)
    return True


async def _disable(settings: Settings, kind: str) -> None:
    async with open_database(settings) as connection:
        async with audited(connection) as trail:
            if not await disable_action(connection, kind):
                raise NotFound(f"Unknown kind {kind}; see scoreboard action list")
            await trail.insert(
                actor=operator_name(),
                action="action disable",
                board=None,
                detail={"kind": kind},
            )
        await publish_catalogue(settings, connection)
