"""Which system a command acts on: the one the environment names, or the `up` of a data folder.

What stays true: a target is whole. Both addresses and all settings come from the environment, or
all of them come from the note that a running `up` left in its data folder; where the two disagree,
the command is refused. The note holds passwords, so it is readable by its owner alone, and one
that belongs to somebody else is not used.
"""

import getpass
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import msgspec
from click.core import ParameterSource
from msgspec import Struct

from cli.embedded.data_folder import write_private
from cli.output import print_message
from scoreboard.errors import OperatorMistake
from scoreboard.ledger.pool import Connection, connect
from scoreboard.ledger.sessions import require_session
from scoreboard.model import is_board_name
from scoreboard.runtime import settings as settings_module
from scoreboard.runtime.connection_urls import redact_url
from scoreboard.runtime.settings import UNPREFIXED, Settings
from scoreboard.security.tokens import LocalIssuer
from scoreboard.store.client import make_client
from scoreboard.store.store import Store

DATA_DIR: Final = Path(".data")
NOTE: Final = "running.json"
ISSUER_DIR: Final = "issuer"

REDIS_URL: Final = UNPREFIXED["redis_url"]
DATABASE_URL: Final = UNPREFIXED["database_url"]
STORE_URLS: Final = (REDIS_URL, DATABASE_URL)
REDIS_URL_UNSET: Final = "redis://unset"
"""Stands for a Redis where settings are read for another reason than to reach it."""

_Command = TypeVar("_Command", bound=Callable[..., Any])


class RunningSystem(Struct, frozen=True):
    """Where a running `up` can be reached, and the settings of its services by variable.

    ``redis`` and ``database`` hold passwords.
    """

    api: str
    ws: str
    redis: str
    database: str
    pids: dict[str, int | None]
    issuer: str = ""
    settings: dict[str, str] = {}

    @property
    def addresses(self) -> dict[str, str]:
        """Return the addresses of both stores by variable."""
        return {REDIS_URL: self.redis, DATABASE_URL: self.database}


def data_dir_option(command: _Command) -> _Command:
    """Add `--data-dir`, by which a command finds a running `up`."""
    return click.option(
        "--data-dir",
        type=click.Path(path_type=Path),
        default=DATA_DIR,
        show_default=True,
        help="Folder of the running `scoreboard up` to act on, unless REDIS_URL and DATABASE_URL "
        "name a system.",
    )(command)


def board_option(command: _Command) -> _Command:
    """Add `--board`; `board_or_default` gives the default."""
    return click.option(
        "--board",
        callback=_check_board,
        help="The board.  [default: the first that the system serves]",
    )(command)


def board_or_default(settings: Settings, board: str | None) -> str:
    """Return the board that is meant: the system's first where the command line names none."""
    return settings.boards[0] if board is None else board


def _check_board(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> str | None:
    if value is not None and not is_board_name(value):
        raise click.BadParameter("a board is 1 to 32 characters of a-z 0-9 _ . -")
    return value


def write_state_file(data_dir: Path, running: RunningSystem) -> None:
    """Leave the note by which other commands find this system, in one step.

    Raises OSError; the note before it then stays.
    """
    draft = data_dir / f"{NOTE}.new"
    write_private(draft, msgspec.json.encode(running).decode())
    draft.replace(data_dir / NOTE)


def read_state_file(data_dir: Path) -> RunningSystem | None:
    """Read the note of a running `up`; None where none runs.

    Raises OperatorMistake where somebody else may have written it.
    """
    path = data_dir / NOTE
    try:
        facts = path.stat()
        note = msgspec.json.decode(path.read_bytes(), type=RunningSystem)
    except (OSError, msgspec.DecodeError):
        return None
    trusted = {os.geteuid()} | ({facts.st_uid} if _is_named() and os.geteuid() == 0 else set())
    if facts.st_uid not in trusted or facts.st_mode & 0o022:
        raise OperatorMistake(
            f"{path} was written by another user or may be, so it does not say which system "
            "to act on"
        )
    return note


def remove_state_file(data_dir: Path) -> None:
    """Take the note away."""
    with suppress(OSError):
        (data_dir / NOTE).unlink()


def load_settings(data_dir: Path, needs: Sequence[str] = STORE_URLS) -> Settings:
    """Return the settings of the system to act on; ``needs`` are the addresses that must be known.

    Raises OperatorMistake where they are not all of one system, SettingInvalid.
    """
    environ, _ = _environment(data_dir, needs)
    return read_settings(environ)


def load_settings_to_change(data_dir: Path, needs: Sequence[str] = STORE_URLS) -> Settings:
    """Return the settings of the system to change, and tell the operator which one that is.

    Raises what ``load_settings`` does.
    """
    environ, source = _environment(data_dir, needs)
    found = read_settings(environ)
    print_message(f"Acting on {describe_stores(environ)}, named by {source}")
    return found


def describe_stores(environ: Mapping[str, str]) -> str:
    """Describe the stores that an environment names, without passwords."""
    kinds = {REDIS_URL: "Redis", DATABASE_URL: "PostgreSQL"}
    return " and ".join(
        f"{kind} {redact_url(environ[name])}" for name, kind in kinds.items() if environ.get(name)
    )


def load_running_system(data_dir: Path, option: str) -> RunningSystem:
    """Return the note of the system to act on; ``option`` names the address by hand.

    Raises OperatorMistake where none runs, or the environment names another system.
    """
    note = read_state_file(data_dir)
    if note is None:
        raise OperatorMistake(f"No scoreboard runs on {data_dir}: give {option}")
    given = _given()
    if _disagrees(given, note):
        raise OperatorMistake(
            f"{' and '.join(given)} name another system than the one on {data_dir}: "
            f"give {option}, or unset them"
        )
    return note


def load_audience(data_dir: Path) -> str:
    """Return the audience of the tokens of a data folder.

    Raises SettingInvalid.
    """
    note = read_state_file(data_dir)
    environ = os.environ if note is None else note.settings
    return read_settings(environ).audience


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Return the settings of an environment that need not name a Redis.

    Raises SettingInvalid.
    """
    return settings_module.load({**environ, REDIS_URL: environ.get(REDIS_URL) or REDIS_URL_UNSET})


def load_issuer(data_dir: Path) -> LocalIssuer:
    """Load the local issuer of a data folder.

    Raises OperatorMistake where there is none.
    """
    return LocalIssuer.load(data_dir / ISSUER_DIR)


def _environment(data_dir: Path, needs: Sequence[str]) -> tuple[dict[str, str], str]:
    """Return the environment of the system to act on, and what named it."""
    given = _given()
    if given:
        missing = [name for name in needs if name not in given]
        if missing:
            raise OperatorMistake(
                f"{' and '.join(given)} is set and {' and '.join(missing)} is not: set both, or "
                f"neither to act on the scoreboard that runs on {data_dir}"
            )
        note = read_state_file(data_dir) if _is_named() else None
        if note is not None and _disagrees(given, note):
            raise OperatorMistake(
                f"--data-dir names the scoreboard that runs on {data_dir}, and "
                f"{' and '.join(given)} name another: leave out the one or unset the other"
            )
        return dict(os.environ), "the environment"
    note = read_state_file(data_dir)
    if note is None:
        raise OperatorMistake(
            f"No scoreboard runs on {data_dir}: start `scoreboard up`, or set {' and '.join(needs)}"
        )
    unset_libpq_variables()
    return {**note.settings, **note.addresses}, f"the scoreboard that runs on {data_dir}"


def unset_libpq_variables() -> None:
    """Take libpq's variables (PGSSLMODE, PGOPTIONS, PGSERVICE …) out of this process.

    They belong to servers that the operator names, and would lead libpq elsewhere or stop it on
    one that `up` has started.
    """
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]


def _given() -> dict[str, str]:
    return {name: os.environ[name] for name in STORE_URLS if os.environ.get(name)}


def _disagrees(given: dict[str, str], note: RunningSystem) -> bool:
    return any(text != note.addresses[name] for name, text in given.items())


def _is_named() -> bool:
    """Tell whether `--data-dir` was given on the command line."""
    context = click.get_current_context(silent=True)
    source = context.get_parameter_source("data_dir") if context else None
    return source is ParameterSource.COMMANDLINE


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Store]:
    """Give typed access to Redis, closed at the end."""
    client = make_client(settings, name="cli")
    try:
        yield Store(client)
    finally:
        await client.aclose()


@asynccontextmanager
async def open_database(settings: Settings, **session: str) -> AsyncIterator[Connection]:
    """Give a connection to PostgreSQL, closed at the end; ``session`` overrides its settings.

    Raises DatabaseUnavailable, UnsafeDatabase, SettingInvalid.
    """
    connection = await connect(settings, name="cli", autocommit=True, **session)
    try:
        await require_session(settings, connection)
        yield connection
    finally:
        await connection.close()


def operator_name() -> str:
    """Name who acts, for the audit log: the user this process was started by."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())  # a container's user need not have a name
