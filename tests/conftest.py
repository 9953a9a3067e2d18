"""Loads the fixtures and marks each test by the folder it stands in.

A server that is missing fails the test that needs it; nothing here skips.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from scoreboard.runtime.telemetry import RATE_LIMIT_FILTER

pytest.register_assert_rewrite("tests.support")

pytest_plugins = [
    "tests.support.servers.stores",
    "tests.support.fakes.aws",
    "tests.support.fakes.tokens",
    "tests.support.fakes.proxy",
    "tests.support.fakes.pooler",
    "tests.support.servers.api",
    "tests.support.servers.api_process",
    "tests.support.clients.viewer",
    "tests.support.clients.browser",
    "tests.support.servers.system",
    "tests.support.clients.commands",
]

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
    },
)
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def logging_is_restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a test that sets up logging leaves: handlers of its stderr, cached loggers."""
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
    """Let each test write its lines, whatever those before it wrote."""
    RATE_LIMIT_FILTER.limit.flush()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not item.path.is_relative_to(HERE):
            continue
        folder = item.path.relative_to(HERE).parts[0]
        if folder not in FOLDERS:
            raise pytest.UsageError(f"{item.path}: tests/{folder} has no marker (see conftest.py)")
        item.add_marker(folder)
