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


def test_later_migrations_say_which_versions_can_use_them() -> None:
    """A version starts if it knows `compatible_from` of each migration that it does not know."""
    names = [path.stem for path in MIGRATIONS]
    first = names.index("0016_create_schema_compatibility") + 1
    for place, path in list(enumerate(MIGRATIONS))[first:]:
        statement = re.search(
            rf"INSERT INTO schema_compatibility \(migration, compatible_from\)\n"
            rf"VALUES \('{path.stem}', '(\w+)'\) ON CONFLICT DO NOTHING;",
            path.read_text(),
        )
        assert statement, f"{path.name} inserts no row (CONTRIBUTING.md, Migrations)"
        assert statement[1] in names[first - 1 : place + 1], path.name
        before = re.sub(r"--.*", "", path.read_text()[: statement.start()])
        assert not before.strip(), f"{path.name}: the row comes first"


def test_merged_migrations_are_never_edited() -> None:
    """The runner identifies a file by its name; sql/migrations/CHECKSUMS has its content's hash."""
    listed = dict(
        reversed(line.split("  "))
        for line in (ROOT / "sql/migrations/CHECKSUMS").read_text().splitlines()
    )

    held = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in MIGRATIONS}

    assert held == listed, "add a migration instead; a new one goes in by: make checksums"
