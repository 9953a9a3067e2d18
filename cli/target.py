"""Which system a command acts on: the one the environment names, else the `up` of a data folder.

What stays true: REDIS_URL and DATABASE_URL win over a running `up`; its addresses hold passwords,
so the note with them is readable by its owner alone.
"""

import getpass
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import msgspec
from msgspec import Struct

from cli.data_folder import write_private
from scoreboard import settings as settings_module
from scoreboard.auth import LocalIssuer
from scoreboard.errors import OperatorMistake
from scoreboard.live import Live
from scoreboard.local_issuer import JWKS_FILE
from scoreboard.model import is_board_name
from scoreboard.postgres import Connection, connect
from scoreboard.redis_client import make_client
from scoreboard.settings import Settings

DATA_DIR: Final = Path(".data")
NOTE: Final = "running.json"
ISSUER: Final = "issuer"

_Command = TypeVar("_Command", bound=Callable[..., Any])


class Running(Struct, frozen=True):
    """Where a running `up` can be reached; ``redis`` and ``database`` hold passwords."""

    api: str
    ws: str
    redis: str
    database: str
    pids: dict[str, int | None]
    issuer: str = ""


def data_dir_option(command: _Command) -> _Command:
    """Add `--data-dir`, by which a command finds a running `up`."""
    return click.option(
        "--data-dir",
        type=click.Path(path_type=Path),
        default=DATA_DIR,
        show_default=True,
        help="Folder of the running `scoreboard up`; REDIS_URL and DATABASE_URL win over it.",
    )(command)


def board_option(command: _Command) -> _Command:
    """Add `--board`."""
    return click.option(
        "--board", default="main", show_default=True, callback=_check_board, help="The board."
    )(command)


def _check_board(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    if not is_board_name(value):
        raise click.BadParameter("a board is 1 to 32 characters of a-z 0-9 _ . -")
    return value


def write_note(data_dir: Path, running: Running) -> None:
    """Leave the note by which other commands find this system."""
    write_private(data_dir / NOTE, msgspec.json.encode(running).decode())


def read_note(data_dir: Path) -> Running | None:
    """Read the note of a running `up`; None where none runs."""
    try:
        return msgspec.json.decode((data_dir / NOTE).read_bytes(), type=Running)
    except (OSError, msgspec.DecodeError):
        return None


def drop_note(data_dir: Path) -> None:
    """Take the note away."""
    with suppress(OSError):
        (data_dir / NOTE).unlink()


def settings_of(data_dir: Path) -> Settings:
    """Give settings with the addresses of the system to act on.

    Raises OperatorMistake where nothing says which one; SettingInvalid.
    """
    environ = dict(os.environ)
    note = read_note(data_dir)
    if note is not None:
        environ.setdefault("REDIS_URL", note.redis)
        environ.setdefault("DATABASE_URL", note.database)
        keys = data_dir / ISSUER / JWKS_FILE
        if keys.exists() and not environ.get("SCOREBOARD_JWKS_URL"):
            environ.setdefault("SCOREBOARD_JWKS_FILE", str(keys))
    if not environ.get("REDIS_URL"):
        raise OperatorMistake(
            f"No scoreboard runs on {data_dir}: start `scoreboard up`, or set REDIS_URL "
            "and DATABASE_URL"
        )
    return settings_module.load(environ)


def database_url_of(data_dir: Path) -> str:
    """Give the address of the database to act on.

    Raises OperatorMistake where nothing says which one.
    """
    note = read_note(data_dir)
    url = os.environ.get("DATABASE_URL") or (note.database if note else "")
    if not url:
        raise OperatorMistake(
            f"No scoreboard runs on {data_dir}: start `scoreboard up`, or set DATABASE_URL"
        )
    return url


def issuer_of(data_dir: Path) -> LocalIssuer:
    """Load the local issuer of a data folder.

    Raises OperatorMistake where there is none.
    """
    return LocalIssuer.load(data_dir / ISSUER)


@asynccontextmanager
async def open_live(settings: Settings) -> AsyncIterator[Live]:
    """Give typed access to Redis, closed at the end."""
    client = make_client(settings, name="cli")
    try:
        yield Live(client)
    finally:
        await client.aclose()


@asynccontextmanager
async def open_archive(settings: Settings, **session: str) -> AsyncIterator[Connection]:
    """Give a connection to PostgreSQL, closed at the end; ``session`` overrides its settings.

    Raises DatabaseUnavailable, SettingInvalid.
    """
    connection = await connect(settings, name="cli", autocommit=True, **session)
    try:
        yield connection
    finally:
        await connection.close()


def operator() -> str:
    """Name who acts, for the audit log: the user this process was started by."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())  # a container's user need not have a name
