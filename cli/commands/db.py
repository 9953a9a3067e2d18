"""`scoreboard db`: migrate the database and show its state."""

from pathlib import Path

import click

from cli.output import print_json, print_lines, print_message, print_table
from cli.target import (
    DATABASE_URL,
    data_dir_option,
    json_option,
    load_settings,
    load_settings_to_change,
)
from scoreboard.ledger import migrations


@click.group()
def db() -> None:
    """Migrate the database and list its migrations."""


@db.command()
@data_dir_option
def migrate(data_dir: Path) -> None:
    """Apply the pending migrations of this version.

    The command can be repeated; it then applies nothing.

    \b
    Example:
      DATABASE_URL=postgresql://… scoreboard db migrate
    """  # noqa: D301
    settings = load_settings_to_change(data_dir, needs=[DATABASE_URL])
    done = migrations.migrate(settings.database_url.reveal())
    print_lines(done)
    print_message(f"{len(done)} migrations applied" if done else "The database is up to date")


@db.command()
@json_option
@data_dir_option
def status(*, as_json: bool, data_dir: Path) -> int:
    """List the migrations and their state; exit 1 if any is pending."""
    settings = load_settings(data_dir, needs=[DATABASE_URL])
    found = migrations.status(settings.database_url.reveal())
    if as_json:
        print_json([{"migration": name, "applied": applied} for name, applied in found])
    else:
        rows = [(name, "applied" if applied else "pending") for name, applied in found]
        print_table(("migration", "state"), rows)
    return 0 if all(applied for _, applied in found) else 1
