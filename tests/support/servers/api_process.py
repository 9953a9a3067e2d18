"""The api as a process, `python -m api`, with its log in a file."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from scoreboard.runtime.settings import PREFIX
from tests.support.clients.forked import Forked
from tests.support.eventually import eventually
from tests.support.fakes.tokens import AUDIENCE, ISSUER

ROOT = Path(__file__).parents[3]


class ApiProcess:
    """A process of the api; ``port`` is set when it listens."""

    def __init__(self, process: Forked, log: Path) -> None:
        self.process = process
        self.log = log
        self.port = 0

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def lines(self, message: str) -> list[dict[str, Any]]:
        """Return the log lines of one event."""
        import json

        rows = [line for line in self.output.splitlines() if line.startswith("{")]
        return [row for row in map(json.loads, rows) if row["message"] == message]

    def wait_until_listening(self, workers: int = 1) -> None:
        def listening() -> bool:
            assert self.process.poll() is None, self.output
            return len(self.lines("api_listening")) >= workers

        eventually(listening, within_s=60)
        self.port = int(self.lines("api_listening")[0]["server.port"])

    def stop(self, number: int = signal.SIGTERM, within_s: float = 60) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(within_s)


RunApi = Callable[..., ApiProcess]


def clean_environ() -> dict[str, str]:
    """Return the environment without the project's settings."""
    unwanted = (PREFIX, "REDIS_URL", "DATABASE_URL")
    return {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}


def process_settings(redis_url: str, jwks_file: Path, **more: object) -> dict[str, str]:
    """Return the environment variables of an api; ``more`` are fields, such as ``api_port=0``."""
    return {
        "REDIS_URL": redis_url,
        "SCOREBOARD_JWKS_FILE": str(jwks_file),
        "SCOREBOARD_UNKNOWN_KINDS": "default",
        "SCOREBOARD_ISSUER": ISSUER,
        "SCOREBOARD_AUDIENCE": AUDIENCE,
        "SCOREBOARD_RATE_LIMIT": "gateway",
        "SCOREBOARD_API_PORT": "0",
        "SCOREBOARD_API_METRICS_PORT": "0",
        "SCOREBOARD_DRAIN_NOTICE_S": "0.1",
    } | {PREFIX + field.upper(): str(value) for field, value in more.items()}


@pytest.fixture
def run_api(redis_url: str, jwks_file: Path, tmp_path: Path) -> Iterator[RunApi]:
    """Return a function that starts processes; keywords are settings, such as ``api_workers=4``."""
    with ExitStack() as stack:

        def run(*, wait: bool = True, environ: dict[str, str] | None = None, **more: object) -> Any:
            settings = process_settings(redis_url, jwks_file, **more)
            log = tmp_path / f"api-{time.monotonic_ns()}.log"
            with log.open("wb") as sink:
                variables = clean_environ() | settings | (environ or {})
                process = Forked("api", [], variables, folder=ROOT, output=sink)
            api = ApiProcess(process, log)
            stack.callback(_end, api)
            if wait:
                api.wait_until_listening(int(str(more.get("api_workers", 1))))
            return api

        yield run


def _end(api: ApiProcess) -> None:
    try:
        api.stop()
    except subprocess.TimeoutExpired:
        api.process.kill()
        api.process.wait()


def client_of(api: ApiProcess) -> httpx.Client:
    return httpx.Client(base_url=api.url, trust_env=False, timeout=30)
