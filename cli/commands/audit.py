"""`scoreboard audit`: list the audit log, and verify that it was only added to."""

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Final

import click
import msgspec

from cli.output import print_json, print_message, print_table
from cli.parameters import BOARD, CHAIN_HEAD, MOMENT
from cli.target import (
    DATABASE_URL,
    data_dir_option,
    json_option,
    load_settings,
    open_database,
)
from scoreboard.ledger.audit import (
    AuditFilter,
    AuditRow,
    ChainHead,
    ChainVerdict,
    select_audit,
    verify_chain,
)
from scoreboard.ledger.migrations import require_schema
from scoreboard.runtime.settings import Settings

NEEDS: Final = [DATABASE_URL]


@click.group()
def audit() -> None:
    """List administrative changes and verify the audit log."""


@audit.command(name="list")
@click.option("--since", type=MOMENT, help="First time, such as 2026-07-01 or "
              "2026-07-01T08:30:00Z; UTC without a zone.")  # fmt: skip
@click.option("--until", type=MOMENT, help="Time before which the rows are.")
@click.option("--actor", help="Who made the change.")
@click.option("--action", help="The change, such as 'reseed' or 'action set'.")
@click.option("--board", type=BOARD, help="The board that was changed.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True,
              help="Number of rows.")  # fmt: skip
@json_option
@data_dir_option
def list_audit(
    *,
    since: datetime | None,
    until: datetime | None,
    actor: str | None,
    action: str | None,
    board: str | None,
    limit: int,
    as_json: bool,
    data_dir: Path,
) -> None:
    """List administrative changes, newest first.

    Updates of players are in the ledger, not here.

    \b
    Examples:
      scoreboard audit list --since 2026-07-01 --action reseed
      scoreboard audit list --actor root --json
    """  # noqa: D301
    chosen = AuditFilter(since=since, until=until, actor=actor, action=action, board=board)
    rows = asyncio.run(_list(load_settings(data_dir, NEEDS), chosen, limit))
    if as_json:
        print_json(rows)
        return
    print_table(
        ("number", "time", "actor", "action", "board", "detail"),
        [
            (
                row.seq,
                row.at.isoformat(timespec="seconds"),
                row.actor,
                row.action,
                row.board,
                msgspec.json.encode(row.detail).decode(),
            )
            for row in rows
        ],
    )


@audit.command()
@click.option("--head", type=CHAIN_HEAD, metavar="NUMBER:HASH", help="The head that an earlier "
              "`audit verify` printed; the log must still contain it.")  # fmt: skip
@json_option
@data_dir_option
def verify(*, head: tuple[int, str] | None, as_json: bool, data_dir: Path) -> int:
    """Verify that no row of the audit log was changed, removed or inserted.

    Prints the head of the chain as NUMBER:HASH. Keep it outside of the database: with --head it
    also shows whether the end of the log was removed, or the whole chain written anew. Exit 1 if
    the log is not intact.

    \b
    Example:
      scoreboard audit verify > audit-head
      scoreboard audit verify --head "$(cat audit-head)"
    """  # noqa: D301
    expected = None if head is None else ChainHead(*head)
    verdict = asyncio.run(_verify(load_settings(data_dir, NEEDS), expected))
    if as_json:
        print_json(verdict)
    else:
        print_table(("head",), [(f"{verdict.head.seq}:{verdict.head.hash}",)])
    print_message(
        f"The audit log is not intact: {verdict.problem}"
        if verdict.problem
        else f"The audit log is intact: {verdict.head.seq} rows"
    )
    return 1 if verdict.problem else 0


async def _list(settings: Settings, chosen: AuditFilter, limit: int) -> list[AuditRow]:
    async with open_database(settings) as connection:
        await require_schema(connection)
        return await select_audit(connection, chosen, limit=limit)


async def _verify(settings: Settings, expected: ChainHead | None) -> ChainVerdict:
    async with open_database(settings, statement_timeout="0") as connection:
        await require_schema(connection)
        return await verify_chain(connection, expected)
