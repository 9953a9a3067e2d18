"""Query files match their callers, and migrations match their checksums."""

import hashlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUERIES = sorted((ROOT / "sql/queries").glob("*.sql"))
MIGRATIONS = sorted((ROOT / "sql/migrations").glob("*.sql"))


def test_exactly_the_used_query_files_exist() -> None:
    sources = [*(ROOT / "scoreboard").rglob("*.py"), *(ROOT / "flusher").glob("*.py")]
    named = set(re.findall(r'query\(\s*"(\w+)"', "\n".join(path.read_text() for path in sources)))

    assert named == {path.stem for path in QUERIES}


@pytest.mark.parametrize("path", QUERIES, ids=lambda path: path.stem)
def test_a_query_states_its_purpose_and_index(path: Path) -> None:
    first, second, *_ = path.read_text().splitlines()

    assert re.match(r"-- \S.{10,}", first)
    assert second.startswith("-- Index: ")


def test_migrations_are_numbered_without_gaps_and_chained() -> None:
    names = [path.stem for path in MIGRATIONS]

    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    for before, path in zip(names, MIGRATIONS[1:], strict=False):
        assert path.read_text().splitlines()[0] == f"-- depends: {before}"


def test_merged_migrations_are_never_edited() -> None:
    """The runner identifies a file by its name; sql/migrations/CHECKSUMS has its content's hash."""
    listed = dict(
        reversed(line.split("  "))
        for line in (ROOT / "sql/migrations/CHECKSUMS").read_text().splitlines()
    )

    held = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in MIGRATIONS}

    assert held == listed, "add a migration instead; a new one goes in by: make checksums"
