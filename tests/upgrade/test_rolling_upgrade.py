"""Processes of two versions side by side, replaced one at a time under load, and back.

`make upgrade-drill` runs the full form: every pair of versions and several orders.
"""

from pathlib import Path

import pytest

from scoreboard.ledger import pool as postgres
from scoreboard.ledger.audit import verify_chain
from scoreboard.model import Board, Layout, Limits, Rules
from scoreboard.runtime.settings import Secret, Settings
from tests.upgrade import versions
from tests.upgrade.rollout import rolling

pytestmark = pytest.mark.slow

ACTIONS = 12
"""Actions that are counted in each state of the system."""

COMMANDS = (("action", "set", "quest", "7"),)
"""Each version writes to the audit log."""


async def test_an_upgrade_and_a_rollback_lose_and_double_nothing(tmp_path: Path) -> None:
    """The new version is this one with additions to everything that two versions share."""
    previous, new = versions.previous(), versions.later(tmp_path / "later")
    async with rolling(tmp_path, previous, clients=3, pace_s=0.1) as rollout:
        await rollout.prepare_upgrade(new, actions=ACTIONS)
        await rollout.crash("flusher", actions=ACTIONS)
        await rollout.replace_all(new, actions=ACTIONS, commands=COMMANDS)
        await rollout.replace_all(previous, actions=ACTIONS)
        await rollout.finish()
        with rollout.sql() as connection:
            written = connection.execute("SELECT DISTINCT later FROM score_events").fetchall()
        database = Secret(rollout.postgres.url)
        settings = Settings(redis_url=Secret(rollout.valkey.url), database_url=database)
        async with await postgres.connect(settings, name="test") as connection:
            chain = await verify_chain(connection)

    assert rollout.report.violations == []
    assert set(written) == {("earlier",), ("later",)}, "both versions have written"
    assert chain.problem == ""


async def test_a_board_with_seasons_and_limits_is_upgraded_and_rolled_back(tmp_path: Path) -> None:
    """Both versions know seasons and limits: the previous release refuses them."""
    this, new = versions.current(), versions.later(tmp_path / "later")
    rules = Rules(season="cron:*/5 * * * * *", time_zone="UTC")
    board = Board("main", Layout(rules=rules), limits=Limits(45, 600, 10))
    async with rolling(tmp_path, this, clients=3, pace_s=0.1, board=board) as rollout:
        await rollout.prepare_upgrade(new, actions=ACTIONS)
        await rollout.crash("flusher", actions=ACTIONS)
        await rollout.replace_all(new, actions=ACTIONS)
        await rollout.replace_all(this, actions=ACTIONS)
        await rollout.finish()
        with rollout.sql() as connection:
            held = connection.execute("SELECT count(*) FROM held_actions").fetchone()
            turned = connection.execute("SELECT count(*) FROM season_turns").fetchone()

    assert rollout.report.violations == []
    assert held is not None
    assert held[0] > 0
    assert turned is not None
    assert turned[0] > 1
