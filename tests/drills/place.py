"""The folder of a drill: addresses and secrets for commands that act on the running system.

Faults and checks run in other processes than the system, so everything they need is in files.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

import psycopg
import redis

from cli.embedded.data_folder import write_private

PARTS = ("valkey", "postgres", "flusher", "streamer", "api")
"""The names of docker-compose.yml."""

SERVICES = ("flusher", "streamer", "api")

VISITOR = "casey"
"""A user who has acted once: the score changes only if somebody changes it by hand."""

FILE = "drill.json"


@dataclass(frozen=True)
class Place:
    """A drill's folder; its addresses have the passwords of the administrators."""

    folder: Path
    redis_url: str
    database_url: str
    operator: Mapping[str, str]
    """The environment of an operator's commands."""
    rotator: Mapping[str, str]
    """The environment of a rotation."""
    health: Mapping[str, str]
    """Addresses of the services' health ports, by part."""
    metrics: Mapping[str, str]

    @classmethod
    def load(cls, folder: Path) -> "Place":
        """Read the file of a running drill."""
        try:
            found = json.loads((folder / FILE).read_text())
        except FileNotFoundError:
            sys.exit(f"No drill runs in {folder}; start one with: python -m tests.drills start")
        return cls(folder, **found)

    def save(self) -> None:
        """Write the file; only its owner can read it."""
        facts = {name: value for name, value in asdict(self).items() if name != "folder"}
        write_private(self.folder / FILE, json.dumps(facts))

    @property
    def valkey_settings(self) -> Path:
        """Return the file of settings that Valkey reads at its start."""
        return self.folder / "valkey.conf"

    @property
    def disk_is_full(self) -> Path:
        """Return the file whose presence limits the size of Valkey's files."""
        return self.folder / ".disk-full"

    @property
    def programs(self) -> Mapping[str, str]:
        """Return an environment without settings of another system."""
        return {name: text for name, text in os.environ.items() if "SCOREBOARD" not in name}

    def secret(self, service: str, kind: str) -> Path:
        """Return the file of a secret."""
        return self.folder / service / kind

    def marker(self, part: str) -> Path:
        """Return the file whose presence keeps a part stopped."""
        return self.folder / "parts" / f"{part}.stopped"

    def pid(self, part: str) -> int | None:
        """Return the process of a part; None if it does not run."""
        with suppress(FileNotFoundError, ValueError):
            return int((self.folder / "parts" / f"{part}.pid").read_text())
        return None

    @property
    def owner(self) -> tuple[str, str]:
        """Return the database's address as its owner without the password, and the password."""
        parts = urlsplit(self.database_url)
        login, _, address = parts.netloc.rpartition("@")
        user, _, password = login.partition(":")
        return urlunsplit(parts._replace(netloc=f"{user}@{address}")), unquote(password)

    @contextmanager
    def redis(self) -> Iterator[redis.Redis]:
        """Open a connection as the administrator."""
        with redis.Redis.from_url(self.redis_url, decode_responses=True) as client:
            yield client

    @contextmanager
    def sql(self) -> Iterator[psycopg.Connection]:
        """Open a connection as the owner."""
        with psycopg.connect(self.database_url, autocommit=True, connect_timeout=5) as connection:
            yield connection
