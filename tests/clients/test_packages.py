"""The packages of the clients: contents, versions, examples, generated files."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from scoreboard.security.tokens import READ, UPDATE
from tests.clients.programs import GO, PYTHON, Streamer, Viewer, go
from tests.support.eventually import eventually
from tests.support.repository import ROOT
from tests.support.servers.system import System

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
ADDRESS = '"https://scores.example.com"'


def examples(folder: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel of the Python client."""
    folder = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], PYTHON)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an environment in which the wheel is installed."""
    folder = tmp_path_factory.mktemp("installed")
    words = ["install", "--quiet", "--no-index", "--no-deps", "--target", str(folder), str(wheel)]
    run([sys.executable, "-m", "pip", "--disable-pip-version-check", *words], folder)
    return os.environ | {"PYTHONPATH": str(folder)}


def run(command: list[str], cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def prints_a_board(command: list[str], cwd: Path, env: dict[str, str]) -> None:
    """Check that an example prints a score and rows."""

    def rows() -> list[str]:
        score, *printed = run(command, cwd, env).splitlines()
        assert int(score) >= 10
        return printed

    # On a busy machine viewers still get the empty board just after the first action.
    eventually(rows)


def test_the_clients_have_the_version_of_the_service() -> None:
    python = tomllib.loads((PYTHON / "pyproject.toml").read_text())["project"]["version"]
    (in_go,) = re.findall(r'const Version = "(.*)"', (GO / "client.go").read_text())

    assert python == in_go == VERSION
    assert f"scoreboard.example/client v{VERSION}" in (GO / "README.md").read_text()


def test_the_wheel_has_the_package_and_says_that_it_is_typed(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())

    assert wheel.name == f"scoreboard_client-{VERSION}-py3-none-any.whl"
    package = {name for name in names if ".dist-info/" not in name}
    source = PYTHON / "src"
    assert package == {
        str(path.relative_to(source))
        for path in (source / "scoreboard_client").iterdir()
        if path.is_file()
    }
    assert "scoreboard_client/py.typed" in package


def test_the_example_of_the_python_readme_runs(
    system: System, installed: dict[str, str], tmp_path: Path
) -> None:
    token = system.token("alice", UPDATE, READ)
    text = examples(PYTHON, "python")[0]
    assert text.strip().count("\n") == 9

    code = text.replace(f"{ADDRESS}, token", f'"{system.api}", "{token}", live_url="{system.ws}"')
    prints_a_board([sys.executable, "-c", code], tmp_path, installed)


def test_the_asyncio_example_of_the_python_readme_runs(
    streamer: Callable[..., Streamer], installed: dict[str, str], tmp_path: Path
) -> None:
    def script(viewer: Viewer) -> None:
        assert viewer.receive() == {"type": "watch", "userIds": ["alice"]}
        viewer.board(1)
        viewer.send(
            "place", board="main", epoch=1, seq=1, at=1, userId="alice", rank=3, score=7, total=9
        )
        viewer.close(4404)

    server = streamer(script)
    text = examples(PYTHON, "python")[1]
    text = text.replace(f"{ADDRESS}, token", f'"http://127.0.0.1:1", live_url="{server.url}"')

    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=tmp_path,
        env=installed,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.stdout == "3 7\n"
    assert "LiveStoppedError: no-such-board (4404)" in done.stderr


def test_the_example_of_the_go_readme_runs(system: System, tmp_path: Path) -> None:
    (text,) = examples(GO, "go")
    shutil.copy(GO / "go.sum", tmp_path)
    (tmp_path / "main.go").write_text(
        text.replace(ADDRESS, f'"{system.api}"').replace(
            'os.Getenv("TOKEN")', f'os.Getenv("TOKEN"), LiveURL: "{system.ws}"'
        )
    )
    (tmp_path / "go.mod").write_text(
        (GO / "go.mod").read_text().replace("module scoreboard.example/client", "module example")
        + f"\nrequire scoreboard.example/client v{VERSION}\n"
        f"replace scoreboard.example/client => {GO}\n"
    )
    go("build", "-o", "example", ".", cwd=tmp_path)

    environment = os.environ | {"TOKEN": system.token("alice")}
    prints_a_board([str(tmp_path / "example")], tmp_path, environment)


def test_the_go_client_is_formatted_vetted_and_passes_its_tests() -> None:
    go("vet", "./...")
    assert go("run", "cmd/gofmt", "-l", ".") == ""
    go("test", "-count=1", "./...")


def test_the_archive_of_the_go_client_is_a_module(tmp_path: Path) -> None:
    go("version")
    copy = tmp_path / "copy"
    shutil.copytree(GO, copy / "clients/go")
    run(["make", "-f", str(ROOT / "Makefile"), "clients-go"], copy)

    with tarfile.open(copy / "dist/scoreboard-client-go.tar.gz") as archive:
        names = set(archive.getnames())

    assert {"scoreboard-client/go.mod", "scoreboard-client/client.go"} <= names


@pytest.mark.parametrize("language", ["python", "go"])
def test_the_generated_types_are_those_of_the_document(language: str, tmp_path: Path) -> None:
    if language == "go":
        go("version")
    files = {"python": "python/src/scoreboard_client/_models.py", "go": "go/models.go"}
    target = tmp_path / files[language]
    target.parent.mkdir(parents=True)
    commands = [
        ["make", ".venv-clients/.done"],
        [sys.executable, "clients/generate.py", "--to", str(tmp_path), "--only", language],
    ]
    for command in commands[language == "go" :]:
        made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if made.returncode:
            assert os.environ.get("CI") != "true", made.stderr
            pytest.skip(f"NOT RUN: a generator cannot be had: {made.stderr[-500:]}")

    committed = (ROOT / "clients" / files[language]).read_text()
    assert target.read_text() == committed, "run `make clients-models`"
