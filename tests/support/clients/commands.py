"""Runs `scoreboard` command lines in this process, on the test's own Redis and PostgreSQL."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from cli.group import scoreboard
from scoreboard.ledger.pool import Connection, connect
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.client import make_client
from scoreboard.store.store import Store


@dataclass(frozen=True)
class Done:
    """The result of a command."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]
Command = Callable[..., Awaitable[Done]]


@pytest.fixture
def command(
    redis_url: str,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Run:
    """Return a function that runs a command line; the servers' addresses are in the environment."""
    from cli.main import run

    for name in os.environ:
        if name.startswith("SCOREBOARD_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Done:
        capsys.readouterr()
        code = run(arguments)
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return call


@pytest.fixture
def run(command: Run) -> Command:
    """Return a function that runs a command line in a thread."""

    async def call(*arguments: str) -> Done:
        return await asyncio.to_thread(command, *arguments)

    return call


@pytest.fixture
def settings(redis_url: str, database_url: str) -> Settings:
    """Return settings of the test's servers."""
    return Settings(
        redis_url=Secret(redis_url), database_url=Secret(database_url), flusher_metrics_port=0
    )


def with_store(settings: Settings, use: Callable[[Store], Any]) -> Any:
    """Call ``use`` with typed access to Redis, from a test that is not async."""

    async def work() -> Any:
        client = make_client(settings, name="test")
        try:
            return await use(Store(client))
        finally:
            await client.aclose()

    return asyncio.run(work())


def with_database(settings: Settings, use: Callable[[Connection], Any]) -> Any:
    """Call ``use`` with a connection to PostgreSQL, from a test that is not async."""

    async def work() -> Any:
        async with await connect(settings, name="test") as connection:
            return await use(connection)

    return asyncio.run(work())


def check_command(words: list[str]) -> None:
    """Check that arguments of `scoreboard` name a command and options that it has.

    Raises AssertionError, click.UsageError.
    """
    names = list(words)
    command: click.Command = scoreboard
    context = click.Context(scoreboard)
    while isinstance(command, click.Group):
        inner = command.get_command(context, names.pop(0))
        assert inner is not None, words
        command = inner
    command.make_context("test", names)
