"""Obtain the programs of a proof into a cache: Debian packages unpacked, Go programs built.

A tool that cannot be had skips the proof with the reason, also in CI. A fault of the project fails.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support.repository import CACHE

FETCH_S = 600
BUILD_S = 2400


def program(name: str, package: str) -> str:
    """Return the path of a program of a Debian package; skip the test if missing, in CI fail."""
    path = shutil.which(name)
    if path is None:
        missing = f"{name} is missing (apt install {package})"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(f"NOT RUN: {missing}")
    return path


def unavailable(tool: str, reason: str) -> NoReturn:
    """Skip the proof visibly, because a tool of somebody else's cannot be had here."""
    pytest.skip(f"NOT PROVEN: {tool} cannot be had: {reason.strip()[-2000:]}")


def obtain(
    tool: str,
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    timeout: float = FETCH_S,
) -> str:
    """Run a command that fetches or builds a tool; return its output, or skip the proof."""
    try:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=timeout,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        unavailable(tool, str(error))
    if done.returncode:
        unavailable(tool, done.stdout)
    return done.stdout


def go_programs(module: Path, packages: Sequence[str], *, ldflags: str = "-s -w") -> Path:
    """Build main packages of the Go module in a folder; return the folder of the programs.

    The programs are built again when `go.mod`, `go.sum` or the flags change.
    """
    content = b"".join((module / name).read_bytes() for name in ("go.mod", "go.sum"))
    key = hashlib.sha256(content + ldflags.encode() + " ".join(packages).encode()).hexdigest()[:12]
    folder = CACHE / f"go-{module.name}-{key}"
    with lock(folder):
        if not folder.is_dir():
            draft = folder.with_name(f"{folder.name}.draft")
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            command = [
                "go",
                "build",
                "-trimpath",
                "-ldflags",
                ldflags,
                "-o",
                f"{draft}/",
                *packages,
            ]
            obtain(
                f"go build in {module.name}",
                command,
                cwd=module,
                env={"CGO_ENABLED": "0"},
                timeout=BUILD_S,
            )
            draft.rename(folder)
    return folder


def debian_packages(names: Sequence[str]) -> Path:
    """Unpack Debian packages without installing them; return the folder that has `usr/`."""
    folder = CACHE / f"debian-{hashlib.sha256(' '.join(names).encode()).hexdigest()[:12]}"
    with lock(folder):
        if not folder.is_dir():
            draft = folder.with_name(f"{folder.name}.draft")
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            obtain(f"package {' '.join(names)}", ["apt-get", "download", *names], cwd=draft)
            for package in sorted(draft.glob("*.deb")):
                obtain(package.name, ["dpkg-deb", "-x", package, draft])
                package.unlink()
            draft.rename(folder)
    return folder


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Let one process at a time fill a folder of the cache."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
