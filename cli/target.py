"""The system a command acts on: named by the environment or by the state file of `scoreboard up`.

Invariants: both addresses and all settings come from the environment, or all of them come from the
state file that a running `up` writes to its data folder; a command fails if the two disagree. The
state file contains passwords, so only its owner can read it, and a file that another user owns or
can write is not used.
"""

import asyncio
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
from cli.parameters import BOARD
from scoreboard.errors import OperatorMistake
from scoreboard.ledger.pool import Connection, connect
from scoreboard.ledger.sessions import require_session
from scoreboard.runtime import settings as settings_module
from scoreboard.runtime.connection_urls import redact_url
from scoreboard.runtime.settings import UNPREFIXED, Settings
from scoreboard.security.credentials import refresh_secrets
from scoreboard.security.tokens import LocalIssuer, LocalProver
from scoreboard.store.client import make_client
from scoreboard.store.store import Store

DATA_DIR: Final = Path(".data")
STATE_FILE: Final = "running.json"
ISSUER_DIR: Final = "issuer"

REDIS_URL: Final = UNPREFIXED["redis_url"]
DATABASE_URL: Final = UNPREFIXED["database_url"]
STORE_URLS: Final = (REDIS_URL, DATABASE_URL)
REDIS_URL_UNSET: Final = "redis://unset"
"""Placeholder where settings are loaded without a need to reach Redis."""

_Command = TypeVar("_Command", bound=Callable[..., Any])


class RunningSystem(Struct, frozen=True):
    """The addresses of a running `up`, and the settings of its services by variable.

    ``redis`` and ``database`` contain passwords.
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
        """The addresses of both stores by variable."""
        return {REDIS_URL: self.redis, DATABASE_URL: self.database}


def data_dir_option(command: _Command) -> _Command:
    """Add `--data-dir`, the data folder of a running `up`."""
    return click.option(
        "--data-dir",
        type=click.Path(path_type=Path),
        default=DATA_DIR,
        show_default=True,
        help="Data folder of the running `scoreboard up` to act on, if REDIS_URL and DATABASE_URL "
        "are not set.",
    )(command)


def json_option(command: _Command) -> _Command:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def yes_option(command: _Command) -> _Command:
    """Add `--yes`."""
    return click.option("--yes", is_flag=True, help="Do not ask for confirmation.")(command)


def board_option(command: _Command) -> _Command:
    """Add `--board`; see `board_or_default`."""
    return click.option(
        "--board", type=BOARD, help="Board to use.  [default: the first board of the system]"
    )(command)


def board_or_default(settings: Settings, board: str | None) -> str:
    """Return ``board``, or the first board of the system if it is None."""
    return settings.boards[0] if board is None else board


def write_state_file(data_dir: Path, running: RunningSystem) -> None:
    """Replace the state file atomically.

    Raises OSError; the previous file is then unchanged.
    """
    draft = data_dir / f"{STATE_FILE}.new"
    write_private(draft, msgspec.json.encode(running).decode())
    draft.replace(data_dir / STATE_FILE)


def read_state_file(data_dir: Path) -> RunningSystem | None:
    """Read the state file of a running `up`; return None if there is no usable file.

    Raises OperatorMistake if another user owns it or can write it.
    """
    path = data_dir / STATE_FILE
    try:
        facts = path.stat()
        running = msgspec.json.decode(path.read_bytes(), type=RunningSystem)
    except (OSError, msgspec.DecodeError):
        return None
    trusted = {os.geteuid()}
    if _is_data_dir_given() and os.geteuid() == 0:
        trusted.add(facts.st_uid)
    if facts.st_uid not in trusted or facts.st_mode & 0o022:
        raise OperatorMistake(f"{path} is not used because another user owns it or can write to it")
    return running


def remove_state_file(data_dir: Path) -> None:
    """Remove the state file, if there is one."""
    with suppress(OSError):
        (data_dir / STATE_FILE).unlink()


def load_settings(data_dir: Path, needs: Sequence[str] = STORE_URLS) -> Settings:
    """Return the settings of the system to act on; ``needs`` are the required address variables.

    Raises OperatorMistake if the system is not clearly named, SettingInvalid.
    """
    environ, _ = _find_environment(data_dir, needs)
    return read_settings(environ)


def load_settings_to_change(data_dir: Path, needs: Sequence[str] = STORE_URLS) -> Settings:
    """Return the settings of the system to change, and print its addresses.

    Raises as ``load_settings`` does.
    """
    environ, source = _find_environment(data_dir, needs)
    found = read_settings(environ)
    print_message(f"Acting on {describe_stores(environ)}, from {source}")
    return found


def describe_stores(environ: Mapping[str, str]) -> str:
    """Describe the stores that an environment names, without passwords."""
    kinds = {REDIS_URL: "Redis", DATABASE_URL: "PostgreSQL"}
    return " and ".join(
        f"{kind} {redact_url(environ[name])}" for name, kind in kinds.items() if environ.get(name)
    )


def load_running_system(data_dir: Path, option: str) -> RunningSystem:
    """Return the running system of a data folder; ``option`` is named in errors as the alternative.

    Raises OperatorMistake if none is running, or if the environment names another system.
    """
    running = read_state_file(data_dir)
    if running is None:
        raise OperatorMistake(f"No scoreboard runs on {data_dir}; use {option}")
    given = _given_addresses()
    if _differs(given, running):
        raise OperatorMistake(
            f"{' and '.join(given)} name another system than the one on {data_dir}; "
            f"use {option}, or unset them"
        )
    return running


def load_audience(data_dir: Path) -> str:
    """Return the audience of the tokens of a data folder.

    Raises SettingInvalid.
    """
    running = read_state_file(data_dir)
    environ = os.environ if running is None else running.settings
    return read_settings(environ).audience


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Return the settings of an environment, in which REDIS_URL may be missing.

    Raises SettingInvalid.
    """
    return settings_module.load({**environ, REDIS_URL: environ.get(REDIS_URL) or REDIS_URL_UNSET})


def load_issuer(data_dir: Path) -> LocalIssuer:
    """Load the local issuer of a data folder.

    Raises OperatorMistake if there is none.
    """
    return LocalIssuer.load(data_dir / ISSUER_DIR)


def load_prover(data_dir: Path) -> LocalProver:
    """Load the key of a data folder that signs proofs.

    Raises OperatorMistake if there is none.
    """
    return LocalProver.load(data_dir / ISSUER_DIR)


def _find_environment(data_dir: Path, needs: Sequence[str]) -> tuple[dict[str, str], str]:
    """Return the environment of the system to act on, and a description of its source."""
    given = _given_addresses()
    if given:
        missing = [name for name in needs if name not in given]
        if missing:
            raise OperatorMistake(
                f"{' and '.join(given)} is set and {' and '.join(missing)} is not; set both, or "
                f"neither to act on the scoreboard that runs on {data_dir}"
            )
        running = read_state_file(data_dir) if _is_data_dir_given() else None
        if running is not None and _differs(given, running):
            raise OperatorMistake(
                f"--data-dir names the scoreboard that runs on {data_dir}, but "
                f"{' and '.join(given)} name another system; omit --data-dir or unset them"
            )
        return dict(os.environ), "the environment"
    running = read_state_file(data_dir)
    if running is None:
        raise OperatorMistake(
            f"No scoreboard runs on {data_dir}; start `scoreboard up`, or set {' and '.join(needs)}"
        )
    unset_libpq_variables()
    return {**running.settings, **running.addresses}, f"the scoreboard that runs on {data_dir}"


def unset_libpq_variables() -> None:
    """Remove libpq's variables (PGSSLMODE, PGOPTIONS, PGSERVICE …) from this process.

    They are meant for servers that the operator names; with a server that `up` has started, libpq
    would connect elsewhere or fail.
    """
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]


def _given_addresses() -> dict[str, str]:
    return {name: os.environ[name] for name in STORE_URLS if os.environ.get(name)}


def _differs(given: dict[str, str], running: RunningSystem) -> bool:
    return any(text != running.addresses[name] for name, text in given.items())


def _is_data_dir_given() -> bool:
    """Return whether `--data-dir` was given on the command line."""
    context = click.get_current_context(silent=True)
    source = context.get_parameter_source("data_dir") if context else None
    return source is ParameterSource.COMMANDLINE


@asynccontextmanager
async def open_store(settings: Settings, *, name: str = "cli") -> AsyncIterator[Store]:
    """Yield a store on Redis and close its connections at the end.

    Meanwhile secrets are refreshed: a command may run for longer than a password is valid.
    """
    refresher = asyncio.create_task(refresh_secrets())
    try:
        async with make_client(settings, name=name) as client:
            yield Store(client)
    finally:
        refresher.cancel()


@asynccontextmanager
async def open_database(settings: Settings, **session: str) -> AsyncIterator[Connection]:
    """Yield a connection to PostgreSQL and close it at the end; ``session`` overrides its settings.

    Raises DatabaseUnavailable, UnsafeDatabase, SettingInvalid.
    """
    connection = await connect(settings, name="cli", autocommit=True, **session)
    try:
        await require_session(settings, connection)
        yield connection
    finally:
        await connection.close()


def operator_name() -> str:
    """Return the operator's name for the audit log: the user who started this process."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())  # the user of a container may have no name
