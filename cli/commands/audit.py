"""`scoreboard audit`: list the audit log, and verify that it was only added to."""

import asyncio
import io
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from cli.csv_rows import CsvRows
from cli.output import print_json, print_message, print_table, write_stdout
from cli.parameters import BOARD, CHAIN_HEAD, MOMENT, USER_ID
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
from scoreboard.runtime.audit import ACTIONS
from scoreboard.runtime.settings import Settings

NEEDS: Final = [DATABASE_URL]
COLUMNS: Final = ("number", "time", "actor", "action", "board", "user", "reason", "detail")

Show = Callable[[Sequence[AuditRow]], None]


class AuditAction(click.ParamType):
    """An action of the audit log, or the first word of several."""

    name = "action"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the action.

        Raises click.BadParameter: a misspelt action would match no row.
        """
        known = {*ACTIONS, *(action.partition(" ")[0] for action in ACTIONS)}
        if value not in known:
            self.fail(f"{value!r} is not one of: {', '.join(sorted(ACTIONS))}", param, ctx)
        return value


@click.group()
def audit() -> None:
    """List administrative changes and verify the audit log."""


@audit.command(name="list")
@click.option("--since", type=MOMENT, help="First time, such as 2026-07-01 or "
              "2026-07-01T08:30:00Z; UTC without a zone.")  # fmt: skip
@click.option("--until", type=MOMENT, help="Time before which the rows are.")
@click.option("--actor", help="Who made the change.")
@click.option("--action", type=AuditAction(), help="The change, such as 'board create', or the "
              "first word of several changes, such as 'board'.")  # fmt: skip
@click.option("--board", type=BOARD, help="The board that was changed.")
@click.option("--user", type=USER_ID, help="The user whom the change names.")
@click.option("--before", type=click.IntRange(min=1), metavar="NUMBER", help="Only rows with a "
              "lower number: the next page.")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True,
              help="Maximum number of rows.")  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="List all rows, whatever their number.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV with a header.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@data_dir_option
def list_audit(
    *,
    since: datetime | None,
    until: datetime | None,
    actor: str | None,
    action: str | None,
    board: str | None,
    user: str | None,
    before: int | None,
    limit: int,
    everything: bool,
    as_csv: bool,
    as_json: bool,
    data_dir: Path,
) -> None:
    """List administrative changes, newest first.

    Updates of players are in the ledger, not here.

    \b
    Examples:
      scoreboard audit list --since 2026-07-01 --action reseed
      scoreboard audit list --user alice --all --csv > alice.csv
      scoreboard audit list --actor root --json
    """  # noqa: D301
    if as_csv and as_json:
        raise click.UsageError("Give --csv or --json, not both")
    chosen = AuditFilter(
        since=since,
        until=until,
        actor=actor,
        action=action,
        board=board,
        user=user,
        last=None if before is None else before - 1,
    )
    show = _print_csv() if as_csv else _print_json if as_json else _print_rows
    settings = load_settings(data_dir, NEEDS)
    asyncio.run(_list(settings, chosen, None if everything else limit, show))


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


async def _list(settings: Settings, chosen: AuditFilter, limit: int | None, show: Show) -> None:
    """Show rows page by page, and how to list the next ones if there are more than the limit."""
    session = {"statement_timeout": "0", "idle_in_transaction_session_timeout": "10min"}
    async with open_database(settings, **session) as connection:
        await require_schema(connection)
        found = count = lowest = 0
        async for page in select_audit(connection, chosen, limit=limit and limit + 1):
            found += len(page)
            rows = page if limit is None else page[: limit - count]
            if rows:
                show(rows)
                count += len(rows)
                lowest = rows[-1].seq
    if not count:
        show([])
    elif found > count:
        print_message(f"There are older rows: add --before {lowest}, or --all")


def _print_json(rows: Sequence[AuditRow]) -> None:
    write_stdout(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))


def _print_rows(rows: Sequence[AuditRow]) -> None:
    print_table(
        COLUMNS,
        [
            (
                row.seq,
                f"{row.at:%Y-%m-%dT%H:%M:%SZ}",
                row.actor,
                row.action,
                row.board,
                row.detail.get("user"),
                row.detail.get("reason"),
                " ".join(f"{name}={_text(value)}" for name, value in _rest(row).items()),
            )
            for row in rows
        ],
    )


def _print_csv() -> Show:
    """Return a function that prints rows as CSV, the first time with a header."""
    file = io.BytesIO()
    table = CsvRows(file, [*COLUMNS, "hash"])

    def show(rows: Sequence[AuditRow]) -> None:
        table.write(
            (
                row.seq,
                row.at,
                row.actor,
                row.action,
                row.board,
                row.detail.get("user"),
                row.detail.get("reason"),
                _text(_rest(row)),
                row.hash,
            )
            for row in rows
        )
        write_stdout(file.getvalue())
        file.seek(0)
        file.truncate()

    return show


def _rest(row: AuditRow) -> dict[str, Any]:
    """Return the details that have no column of their own."""
    return {name: value for name, value in row.detail.items() if name not in {"user", "reason"}}


def _text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


async def _verify(settings: Settings, expected: ChainHead | None) -> ChainVerdict:
    async with open_database(settings, statement_timeout="0") as connection:
        await require_schema(connection)
        return await verify_chain(connection, expected)
