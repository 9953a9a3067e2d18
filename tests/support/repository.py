"""List the files of the repository, also in an unpacked archive without `.git`."""

import os
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[2]

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scoreboard"
"""What tests obtain once and keep: programs, libraries and root folders of other projects."""


def files_of(root: Path = ROOT) -> list[str]:
    """Return the files git tracks or, without git, those `.gitignore` does not exclude."""
    # Only its own repository: an archive may be unpacked inside another one.
    if (root / ".git").exists():
        return _tracked(root)
    return sorted(_walk(root))


def _tracked(root: Path) -> list[str]:
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True
    )
    return sorted(done.stdout.split("\0")[:-1])


def _walk(root: Path) -> Iterator[str]:
    lines = (root / ".gitignore").read_text().split("\n")
    patterns = [line for line in lines if line and not line.startswith("#")]
    for pattern in patterns:
        assert pattern[0] != "!", f"{pattern} is not understood here"
        assert "/" not in pattern[:-1], f"{pattern} is not understood here"
    folders = [".git", *(pattern.rstrip("/") for pattern in patterns)]
    files = [pattern for pattern in patterns if not pattern.endswith("/")]
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if not _is_any(name, folders)]
        for name in names:
            if not _is_any(name, files):
                yield (Path(folder) / name).relative_to(root).as_posix()


def _is_any(name: str, patterns: list[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
