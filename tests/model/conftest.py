"""Fixtures of the state machine of competitions, and the profile `long` for `make model`."""

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import settings

from flusher import consumer
from scoreboard.moderation import acts as acts_module
from scoreboard.moderation import plans
from scoreboard.recovery import verify as verify_module
from scoreboard.runtime.settings import Secret, Settings
from tests.model.real_board import Servers

pytest.register_assert_rewrite("tests.model.competition_machine")
settings.register_profile("long", max_examples=2000)


@pytest.fixture
def competition_settings(redis_url: str, database_url: str) -> Settings:
    return Settings(
        redis_url=Secret(redis_url),
        database_url=Secret(database_url),
        flusher_metrics_port=0,
        flush_linger_ms=0,
        flush_linger_unawaited_ms=0,
        flush_batch=3,
    )


@pytest.fixture
def servers(
    competition_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[asyncio.Runner, Servers]]:
    # Nothing is committed while an act waits, and a flusher that has nothing left is stopped.
    monkeypatch.setattr(acts_module, "COMMIT_S", -1.0)
    monkeypatch.setattr(plans, "COMMIT_S", -1.0)
    monkeypatch.setattr(verify_module, "BACKLOG_S", 0.0)
    monkeypatch.setattr(verify_module, "CATCH_UP_S", 1.0)
    monkeypatch.setattr(consumer, "BLOCK_MS", 2)

    async def make() -> Servers:
        return await Servers(competition_settings).__aenter__()

    with asyncio.Runner() as runner:
        made = runner.run(make())
        yield runner, made
        runner.run(made.__aexit__())
