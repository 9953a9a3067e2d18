"""The versions that run side by side: the previous release, this version, and a later one.

The previous release is in baseline.tar.xz: `git archive` of its commit, without what the tests do
not use. `make baseline REF=…` writes the archive of a commit (CONTRIBUTING.md, Releases). The later
version is a copy of this one with the additions of ADDITIONS.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scoreboard.ledger import migrations
from tests.support.repository import ROOT

BASELINE: Final = Path(__file__).with_name("baseline.tar.xz")
PACKAGES: Final = ("api", "cli", "flusher", "kong", "lua", "scoreboard", "sql", "streamer", "web")
PATHS: Final = (
    *PACKAGES,
    ":!web/docs/swagger-ui",
    "deploy/docker",
    "deploy/prometheus/rules",
    "docs/asyncapi.yaml",
    "docs/openapi.json",
    "docs/reference/metrics.md",
    "pyproject.toml",
)
"""What the archive contains."""

LATER: Final = "9.later"
"""The number of the later version."""


@dataclass(frozen=True)
class Version:
    """A version of the program, in a folder of its own."""

    name: str
    folder: Path

    @property
    def docker(self) -> Path:
        """The folder with its users of Redis and roles of PostgreSQL."""
        return self.folder / "deploy/docker"

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which Python imports this version, with `-P`."""
        kept = {name: text for name, text in os.environ.items() if "SCOREBOARD" not in name}
        return {
            **{name: text for name, text in kept.items() if not name.endswith("_URL")},
            "PYTHONPATH": str(self.folder),
        }

    def run(self, *arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        """Run a `scoreboard` command of this version."""
        return self.start("cli", *arguments, **settings)

    def start(
        self, module: str, *arguments: str, **settings: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run a module of this version until it ends."""
        return subprocess.run(
            [sys.executable, "-P", "-m", module, *arguments],
            env=self.environment | settings,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def migrations(self) -> list[str]:
        """Return the names of its migrations, in order."""
        return sorted(path.stem for path in (self.folder / "sql/migrations").glob("*.sql"))


@dataclass(frozen=True)
class Addition:
    """A change of one file, in which ``old`` occurs exactly once."""

    file: str
    old: str
    new: str


ADDITIONS: Final = (
    # An argument of a script, a field and parts of values in Redis.
    Addition("lua/submit.lua", "local FIELDS_PER_ACTION = 7\n", "local FIELDS_PER_ACTION = 8\n"),
    Addition("lua/submit.lua", "'e', epoch_text, mo", "'e', epoch_text, 'z', ARGV[at + 8], mo"),
    Addition(
        "lua/submit.lua",
        "takes_values and first .. ':' .. score_text or first)",
        "(takes_values and first .. ':' .. score_text or first) .. ':later')",
    ),
    Addition(
        "lua/submit.lua",
        "redis.call('PUBLISH', changes, string.format('%.0f:%.0f', epoch, seq))",
        "redis.call('PUBLISH', changes, string.format('%.0f:%.0f:later', epoch, seq))\n"
        "  redis.call('HSET', meta, 'later', '1')",
    ),
    Addition("lua/turn.lua", "'k', 's', 'p', following)", "'k', 's', 'p', following, 'z', '1')"),
    Addition(
        "lua/submit.lua", "return 'k', 'h', 'l', limit, ", "return 'z', '1', 'k', 'h', 'l', limit, "
    ),
    Addition("lua/submit.lua", "'%s:%.0f:held', first", "'%s:%.0f:held:later', first"),
    Addition(
        "lua/trim.lua",
        "string.format('%.0f:%.0f', epoch, last)",
        "string.format('%.0f:%.0f:later', epoch, last)",
    ),
    Addition(
        "lua/mirror.lua",
        "':version', string.format('%.0f', version + 1))",
        "':version', string.format('%.0f', version + 1), ':later', 'x')",
    ),
    Addition(
        "scoreboard/store/dispatcher.py",
        "            pair,\n        )\n",
        '            pair,\n            "later",\n        )\n',
    ),
    # A field and a type of messages to viewers, over WebSocket and as events.
    Addition(
        "scoreboard/broadcast/messages.py",
        "    leaderboard: tuple[Row, ...]\n",
        "    leaderboard: tuple[Row, ...]\n    later: tuple[int, ...] = (1, 2)\n",
    ),
    Addition(
        "streamer/fanout/hub.py",
        "    return text_frame(encode(message))\n",
        """    return text_frame(b'{"type":"later","x":[1]}') + text_frame(encode(message))\n""",
    ),
    Addition(
        "api/endpoints/sse.py",
        '    return lines.encode() + b"data: "',
        """    lines = 'event: later\\ndata: {"type":"later","x":[1]}\\n\\n' + lines\n"""
        '    return lines.encode() + b"data: "',
    ),
    # A right: the server then ends the connections of these users.
    Addition(
        "deploy/docker/users.acl",
        "+subscribe +unsubscribe +publish +exists",
        "+subscribe +unsubscribe +echo +publish +exists",
    ),
    Addition(
        "deploy/docker/users.acl",
        "  +exists +unlink +rename +expireat +pttl +hgetall +hget +hmget +hset +hdel +hlen\n"
        "  +zadd +zrem +zrange +zscore +zmscore +zcard +zscan +zrandmember\n",
        "  +exists +unlink +rename +expireat +pttl +hgetall +hget +hmget +hset +hdel +hlen +echo\n"
        "  +zadd +zrem +zrange +zscore +zmscore +zcard +zscan +zrandmember\n",
    ),
    # A column that only the later version writes.
    Addition(
        "sql/queries/count_flush_batch.sql",
        "request_id, occurred_at, season\n    )",
        "request_id, occurred_at, season, later\n    )",
    ),
    Addition(
        "sql/queries/count_flush_batch.sql",
        "           %(season)s::TEXT\n    FROM",
        "           %(season)s::TEXT, 'later'\n    FROM",
    ),
)

TABLES: Final = (
    *("act_actions", "actions", "acts", "audit_log", "backups", "bans", "boards", "dead_events"),
    *("flush_state", "held_actions", "rejected_events", "score_events", "scores"),
    *("season_standings", "season_turns", "seasons", "users"),
)


def previous() -> Version:
    """Unpack the previous release, once for all runs: compiling it takes seconds."""
    folder = ROOT / "build/upgrade" / commit_of_baseline()
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            unpacked = Path(made) / "version"
            with tarfile.open(BASELINE) as archive:
                archive.extractall(unpacked, filter="data")
            project = tomllib.loads((unpacked / "pyproject.toml").read_text())["project"]
            _add_metadata(unpacked, project["version"])
            with suppress(OSError):  # another process was faster
                unpacked.rename(folder)
    return Version("previous", folder)


def current() -> Version:
    """Return this version."""
    return Version("current", ROOT)


def later(folder: Path) -> Version:
    """Copy this version and make the additions; a migration adds a column to every table."""
    copy(folder)
    for addition in ADDITIONS:
        path = folder / addition.file
        text = path.read_text()
        assert text.count(addition.old) == 1, f"adapt the addition to {addition.file}"
        path.write_text(text.replace(addition.old, addition.new))
    statements = [
        f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS later TEXT NOT NULL DEFAULT 'earlier';"
        for table in TABLES
    ]
    add_migration(
        folder, "add_later", compatible_from=previous().migrations()[-1], statements=statements
    )
    _add_metadata(folder, LATER)
    return Version("later", folder)


def add_migration(
    folder: Path, verb: str, *, compatible_from: str | None, statements: Sequence[str]
) -> str:
    """Add a migration to a copy; return its name. ``compatible_from`` None is its own name."""
    before = migrations.known()[-1]
    name = f"{int(before[:4]) + 1:04}_{verb}"
    (folder / f"sql/migrations/{name}.sql").write_text(
        f"-- depends: {before}\n"
        "INSERT INTO schema_compatibility (migration, compatible_from)\n"
        f"VALUES ('{name}', '{compatible_from or name}') ON CONFLICT DO NOTHING;\n"
        + "\n".join(statements)
        + "\n"
    )
    return name


def copy(folder: Path) -> None:
    """Copy what a version needs, with the compiled modules."""
    for name in (*PACKAGES, "deploy/docker"):
        ignored = shutil.ignore_patterns("swagger-ui")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)


def _add_metadata(folder: Path, version: str) -> None:
    """Add the metadata from which a process reads its version."""
    metadata = folder / f"scoreboard-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: scoreboard\nVersion: {version}\n"
    )


def pack(revision: str) -> None:
    """Write the archive of a commit."""
    tar = BASELINE.with_suffix("")
    subprocess.run(
        ["git", "archive", "--format=tar", "-o", str(tar), revision, "--", *PATHS],
        cwd=ROOT,
        check=True,
    )
    try:
        with tarfile.open(tar) as archive:
            commit = archive.pax_headers["comment"]
        subprocess.run(["xz", "-9e", "--force", str(tar)], check=True)
    finally:
        tar.unlink(missing_ok=True)
    print(f"{BASELINE.relative_to(ROOT)}: {commit}")  # noqa: T201


def commit_of_baseline() -> str:
    """Return the commit of the previous release, which `git archive` records."""
    with tarfile.open(BASELINE) as archive:
        return archive.pax_headers["comment"]


if __name__ == "__main__":
    pack(*sys.argv[1:])
