"""`scoreboard backup`: record that a backup was made and checked, and list the records.

The service does not make backups. The tool that makes them reports each one, so that `scoreboard
status` and the metric of the flusher show how old the last one is.
"""

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click

from cli.output import print_json, print_message, print_table
from cli.parameters import MOMENT
from cli.target import (
    DATABASE_URL,
    data_dir_option,
    json_option,
    load_settings,
    load_settings_to_change,
    open_database,
    operator_name,
)
from cli.text import find_unsafe
from scoreboard.ledger import backups
from scoreboard.ledger.audit import audited
from scoreboard.ledger.backups import Backup
from scoreboard.ledger.migrations import require_schema
from scoreboard.runtime.connection_urls import extract_passwords
from scoreboard.runtime.settings import Settings

TEXT_MAX: Final = 500
LIMIT: Final = 20
LIMIT_MAX: Final = 1000


class Line(click.ParamType):
    """One line of text without passwords."""

    name = "text"

    def convert(
        self,
        value: Any,  # noqa: ANN401 (as click declares it)
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str:
        """Check the text.

        Raises click.BadParameter.
        """
        if not value.strip() or len(value) > TEXT_MAX:
            self.fail(f"must have 1 to {TEXT_MAX} characters", param, ctx)
        if unsafe := find_unsafe(value):
            self.fail(f"contains a {unsafe}", param, ctx)
        if any(extract_passwords(word) for word in value.split() if "://" in word):
            self.fail("contains a password; give the address without it", param, ctx)
        return value


@click.group()
def backup() -> None:
    """Record backups of PostgreSQL and list the records."""


@backup.command()
@click.argument("location", type=Line())
@click.option(
    "--taken-at",
    type=MOMENT,
    metavar="TIME",
    help="When the backup began, such as 2026-05-03T04:00:00Z.  [default: now]",
)
@click.option("--check", "check_method", type=Line(),
              help="How the backup was checked. Without a check, it does not count as the last "
              "backup.")  # fmt: skip
@data_dir_option
def record(
    *, location: str, taken_at: datetime | None, check_method: str | None, data_dir: Path
) -> None:
    """Record that a backup was made, and how it was checked.

    LOCATION says where it is. Run this command at the end of the job that makes the backup.

    \b
    Examples:
      scoreboard backup record s3://backups/scoreboard.dump --check "restored, verify --full"
      scoreboard backup record /backups/8.dump --taken-at 2026-05-03T04:00:00Z --check pg_restore
    """  # noqa: D301
    settings = load_settings_to_change(data_dir, needs=[DATABASE_URL])
    recorded = asyncio.run(_record(settings, location, taken_at, check_method))
    state = "checked" if check_method else "not checked, so it does not count as the last backup"
    print_message(f"Backup of {recorded.isoformat(timespec='seconds')} recorded ({state})")


@backup.command(name="list")
@click.option("--limit", type=click.IntRange(1, LIMIT_MAX), default=LIMIT, show_default=True,
              help="Maximum number of backups.")  # fmt: skip
@json_option
@data_dir_option
def list_backups(*, limit: int, as_json: bool, data_dir: Path) -> None:
    """List the backups recorded last, newest first."""
    found = asyncio.run(_list(load_settings(data_dir, needs=[DATABASE_URL]), limit))
    if as_json:
        print_json(found)
        return
    rows = [
        (
            one.taken_at.isoformat(timespec="seconds"),
            one.location,
            one.check_method or "not checked",
            one.recorded_by,
        )
        for one in found
    ]
    print_table(("taken", "location", "check", "recorded by"), rows)


async def _record(
    settings: Settings, location: str, taken_at: datetime | None, check_method: str | None
) -> datetime:
    actor = operator_name()
    async with open_database(settings) as connection:
        await require_schema(connection)
        async with audited(connection) as trail:
            taken_at = await backups.insert_backup(
                connection,
                taken_at=taken_at,
                location=location,
                check_method=check_method,
                recorded_by=actor,
            )
            await trail.insert(
                actor=actor,
                action="backup record",
                board=None,
                detail={
                    "taken_at": taken_at.isoformat(),
                    "location": location,
                    "check": check_method,
                },
            )
    return taken_at


async def _list(settings: Settings, limit: int) -> list[Backup]:
    async with open_database(settings) as connection:
        await require_schema(connection)
        return await backups.select_backups(connection, limit=limit)
