"""`scoreboard db`: brings a database up to this version, and says how far it is."""

from pathlib import Path

import click

from cli.output import print_json, print_lines, print_message, print_table
from cli.target import DATABASE_URL, data_dir_option, load_settings, load_settings_to_change
from scoreboard.ledger import migrations


@click.group()
def db() -> None:
    """Migrate the database, or show how far it is."""


@db.command()
@data_dir_option
def migrate(data_dir: Path) -> None:
    """Bring the database up to this version; harmless when repeated.

    \b
    Example:
      DATABASE_URL=postgresql://… scoreboard db migrate
    """  # noqa: D301
    done = migrations.migrate(
        load_settings_to_change(data_dir, needs=[DATABASE_URL]).database_url.reveal()
    )
    print_lines(done)
    print_message(f"{len(done)} migrations ran" if done else "The database is current")


@db.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@data_dir_option
def status(*, as_json: bool, data_dir: Path) -> int:
    """List the migrations, and whether each has run; exit 1 if one has not."""
    found = migrations.status(load_settings(data_dir, needs=[DATABASE_URL]).database_url.reveal())
    if as_json:
        print_json([{"migration": name, "applied": applied} for name, applied in found])
    else:
        rows = [(name, "applied" if applied else "pending") for name, applied in found]
        print_table(("migration", "state"), rows)
    return 0 if all(applied for _, applied in found) else 1
