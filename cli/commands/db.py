"""`scoreboard db`: migrate the database and show its state."""

import asyncio
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
from scoreboard.ledger.pool import user_of
from scoreboard.runtime.settings import Settings
from scoreboard.security.credentials import secret_store
from scoreboard.security.secret_backends import Credentials


@click.group()
def db() -> None:
    """Migrate the database and list its migrations."""


@db.command()
@data_dir_option
def migrate(data_dir: Path) -> None:
    """Apply the pending migrations of this version.

    The command can be repeated; it then applies nothing. It needs the login of the database's
    owner, in DATABASE_URL or, if that names no user, in SCOREBOARD_DATABASE_SECRET.

    \b
    Example:
      DATABASE_URL=postgresql://… scoreboard db migrate
    """  # noqa: D301
    settings = load_settings_to_change(data_dir, needs=[DATABASE_URL])
    done = migrations.migrate(settings.database_url.reveal(), _login(settings))
    print_lines(done)
    print_message(f"{len(done)} migrations applied" if done else "The database is up to date")


@db.command()
@json_option
@data_dir_option
def status(*, as_json: bool, data_dir: Path) -> int:
    """List the migrations and their state; exit 1 if any is pending.

    \b
    pending  not yet applied
    applied  applied
    newer    applied by a later version of the program
    """  # noqa: D301
    settings = load_settings(data_dir, needs=[DATABASE_URL])
    found = migrations.status(settings.database_url.reveal(), _login(settings))
    if as_json:
        print_json([{"migration": name, "applied": applied} for name, applied in found])
    else:
        ours = set(migrations.known())
        rows = [
            (name, "pending" if not applied else "applied" if name in ours else "newer")
            for name, applied in found
        ]
        print_table(("migration", "state"), rows)
    return 0 if all(applied for _, applied in found) else 1


def _login(settings: Settings) -> Credentials | None:
    """Return the login of SCOREBOARD_DATABASE_SECRET; None if DATABASE_URL names the user.

    The owner's login is often given in the URL, while the settings name the secret of a service.

    Raises SettingInvalid, SecretsUnavailable.
    """
    if user_of(settings.database_url.reveal()):
        return None
    store = secret_store(settings, "database")
    return None if store is None else asyncio.run(store.get())
