"""Properties of the repository: pinned requirements, the wheel, links, no sleeps in tests."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.support.repository import ROOT, files_of

REQUIREMENTS = sorted((ROOT / "requirements").glob("*.txt"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TRACKED = files_of()
PACKAGES = {"api", "cli", "flusher", "kong", "scoreboard", "streamer"}
LINES_ALLOWED = {r"^[^\x00]*$", "^[A-Za-z0-9._-]{8,128}$"}
"""Passwords may contain newlines; a header of the documents has none."""


def test_the_files_are_found_with_and_without_git(tmp_path: Path) -> None:
    # Incident: in an unpacked archive without `.git`, every test of this folder failed.
    assert {"README.md", "tests/contract/test_repository.py", ".gitignore"} <= set(TRACKED)
    for name in TRACKED:
        copy = tmp_path / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.touch()
    (tmp_path / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    for ignored in (".venv/bin/python", "cli/__pycache__/x.pyc", "x.egg-info/PKG-INFO", ".data/a"):
        (tmp_path / ignored).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / ignored).touch()

    assert files_of(tmp_path) == TRACKED


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.name)
def test_requirements_are_pinned_by_hash_and_name_no_address(path: Path) -> None:
    text = path.read_text()

    assert "://" not in text
    blocks = re.split(r"\n(?=\S)", text.strip())
    assert blocks
    for block in blocks:
        if not block.startswith("#"):
            assert re.match(r"[\w.-]+(\[[\w,-]+\])?==\S+", block), block.splitlines()[0]
            assert "--hash=sha256:" in block


def test_every_direct_dependency_has_a_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    names = PROJECT["project"]["dependencies"]
    names += PROJECT["project"]["optional-dependencies"]["embedded"]
    for group in PROJECT["dependency-groups"].values():
        names += [name for name in group if isinstance(name, str)]

    for name in names:
        assert re.search(rf'"{re.escape(name)}",\s+# \S', text), name


def test_no_lock_file_with_addresses_is_tracked() -> None:
    assert "uv.lock" not in TRACKED


def test_the_wheel_holds_the_packages_and_their_data(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")

    held = set(zipfile.ZipFile(wheel).namelist())

    top = {name.split("/")[0] for name in held if ".dist-info" not in name}
    assert top == {"api", "cli", "flusher", "lua", "scoreboard", "sql", "streamer"}
    for folder in ("lua", "sql/queries", "sql/migrations"):
        data = [path for path in (ROOT / folder).iterdir() if path.suffix in {".lua", ".sql"}]
        assert {f"{folder}/{path.name}" for path in data} <= held
    assert "scoreboard/_web/index.html" in held


def test_every_link_between_documents_has_a_target() -> None:
    for name in TRACKED:
        if not name.endswith(".md"):
            continue
        path = ROOT / name
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text()):
            if "://" not in target and not target.startswith("mailto:"):
                assert (path.parent / target).exists(), f"{name} links to {target}"


def test_patterns_of_input_do_not_admit_a_final_newline() -> None:
    """`$` also matches before it; a newline in an act's id once closed a board."""
    loose: list[str] = []
    for name in TRACKED:
        if name.endswith(".py") and name.split("/", 1)[0] in PACKAGES:
            for node in ast.walk(ast.parse((ROOT / name).read_text())):
                match node:
                    case ast.Constant(value=str(text)) if re.fullmatch(r"\^.+\$", text):
                        loose += [] if text in LINES_ALLOWED else [f"{name}: {text}"]
                    case _:
                        pass

    assert loose == []


def test_no_test_sleeps_to_synchronise() -> None:
    """A sleep as synchronisation is slow and still fails; wait for an event or poll a condition.

    A sleep that is part of the load or the fault has a comment: ``# pace: why``.
    """
    sleeping = re.compile(
        r"^(?!.*# pace: \S).*(\btime\.sleep\(|\basyncio\.sleep\((?!0\)))", re.MULTILINE
    )
    offenders = [
        f"{name}: {line.group().strip()}"
        for name in TRACKED
        if re.search(r"tests/(.*/)?test_\w+\.py$", name) and not name.startswith("tests/bench/")
        for line in sleeping.finditer((ROOT / name).read_text())
        if '"' not in line.group()  # the text of another program
    ]

    assert offenders == []
