"""Shared fixtures, and a marker on every test for the folder it is in.

A missing server fails the tests that need it; nothing is skipped.
"""

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
import structlog
import uvloop

from scoreboard.runtime.telemetry import RATE_LIMIT_FILTER

pytest.register_assert_rewrite("tests.support")

# The tests start hundreds of processes; each would compile the project again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Fixtures of one folder are imported by its own conftest.py, so other runs do not load them.
pytest_plugins = [
    "tests.support.servers.stores",
    "tests.support.servers.clusters",
    "tests.support.fakes.tokens",
]

SLOW_FOLDERS = frozenset({"faults", "e2e", "browser", "deploy", "documents", "clients"})
FOLDERS = frozenset(
    {
        "unit",
        "contract",
        "lua",
        "model",
        "integration",
        "faults",
        "migrations",
        "e2e",
        "browser",
        "kong",
        "deploy",
        "documents",
        "javascript",
        "proofs",
        "upgrade",
        "cluster",
        "clients",
    },
)
HERE = Path(__file__).parent


def pytest_configure() -> None:
    # A shell starts background jobs with SIGINT ignored, and the programs under test inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without the garbage collector: what is imported and collected stays until the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def logging_is_restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo logging set-up by tests: handlers on a captured stderr, cached loggers."""
    configure = structlog.configure

    def configure_uncached(**options: object) -> None:
        configure(**{**options, "cache_logger_on_first_use": False})

    monkeypatch.setattr(structlog, "configure", configure_uncached)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(autouse=True)
def log_limit() -> None:
    """Reset the log rate limit, so that each test can log."""
    RATE_LIMIT_FILTER.limit.flush()


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run tests of services on uvloop, as in production: it writes and pauses differently."""
    if item.path.name.startswith("test_http1"):
        return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
    if item.path.name.startswith(("test_streamer", "test_api", "test_operator_port")):
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not item.path.is_relative_to(HERE):
            continue
        folder = item.path.relative_to(HERE).parts[0]
        if folder not in FOLDERS:
            raise pytest.UsageError(f"{item.path}: tests/{folder} has no marker (see conftest.py)")
        item.add_marker(folder)
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Start the longest files first, so that the workers end at about the same time.
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: (not SLOW_FOLDERS & {*item.path.parts}, item.path not in slow))
