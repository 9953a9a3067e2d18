"""Starts a service or a command as its own process and reads its use of resources from /proc."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import httpx
from msgspec import Struct

from scoreboard.runtime.settings import PREFIX
from tests.bench.machine import cpu_s
from tests.support.eventually import eventually

ROOT = Path(__file__).parents[3]
START_S = 60.0
STOP_S = 60.0
JOB_S = 300.0
POLL_S = 0.01


class Use(Struct, frozen=True):
    """What a process uses at a moment; ``peak_mb`` and ``cpu_s`` are since its start."""

    rss_mb: float
    peak_mb: float
    cpu_s: float
    files: int
    threads: int
    at_s: float


def use_of(pid: int) -> Use:
    """Read the use of a process that exists."""
    folder = Path(f"/proc/{pid}")
    status = dict(
        line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line
    )
    return Use(
        rss_mb=int(status["VmRSS"].split()[0]) / 1024,
        # ru_maxrss would include the process that started this one.
        peak_mb=int(status["VmHWM"].split()[0]) / 1024,
        cpu_s=cpu_s(pid),
        files=len(list((folder / "fd").iterdir())),
        threads=int(status["Threads"]),
        at_s=time.monotonic(),
    )


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return this environment without settings of its own, and with ``variables``."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(PREFIX)}
    kept.pop("DATABASE_URL", None)
    return {**kept, "SCOREBOARD_LOG_LEVEL": "warning", **variables}


class Service:
    """A running service."""

    def __init__(self, process: "subprocess.Popen[bytes]", started_at_s: float) -> None:
        self.pid = process.pid
        self.ready_s = time.monotonic() - started_at_s

    def use(self) -> Use:
        return use_of(self.pid)


@contextmanager
def service(module: str, variables: Mapping[str, str], probe_port: int) -> Iterator[Service]:
    """Run `python -m MODULE` until the end of the block; yield it when it is ready."""
    started_at_s = time.monotonic()
    output = tempfile.TemporaryFile()  # noqa: SIM115 (closed below)
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        cwd=ROOT,
        env=environment(variables),
        stdout=output,
        stderr=subprocess.STDOUT,
    )

    def is_ready() -> bool:
        assert process.poll() is None, read(output)
        try:
            return httpx.get(f"http://127.0.0.1:{probe_port}/health/ready").status_code == 200
        except httpx.HTTPError:
            return False

    try:
        eventually(is_ready, within_s=START_S)
        yield Service(process, started_at_s)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        output.close()


def run_job(words: Sequence[str], variables: Mapping[str, str], *, for_s: float = JOB_S) -> Use:
    """Run a command to its end, or end it after ``for_s``; return its last known use."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            env=environment(variables),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        last: Use | None = None
        until_s = time.monotonic() + for_s
        try:
            while process.poll() is None and time.monotonic() < until_s:
                with suppress(KeyError, OSError):  # it is exiting
                    last = use_of(process.pid)
                time.sleep(POLL_S)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(STOP_S)
        if process.returncode not in {0, -signal.SIGTERM} or last is None:
            raise RuntimeError(f"{' '.join(words)}: {read(output)}")
        return last


def read(output: IO[bytes]) -> str:
    """Return what a process has written."""
    output.seek(0)
    return output.read().decode()
