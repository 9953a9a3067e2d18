"""Operators' commands during updates: reseeds, also killed ones, and verifications."""

import asyncio
import os

from scoreboard.model import Partition
from scoreboard.store.keys import PartitionKeys
from tests.e2e.test_score import check_answers, check_stores, make_updates, play
from tests.support.clients.forked import Forked
from tests.support.eventually import eventually
from tests.support.servers.system import System

META = PartitionKeys(Partition("main")).meta


def kill_reseed_after_fence(system: System) -> None:
    """Start a reseed and kill it when it has fenced the board."""
    with system.redis_client() as client:
        before = client.hget(META, "fence")
        words = ["-q", "reseed", "--force", "--yes", "--data-dir", str(system.folder)]
        reseed = Forked("cli", words, os.environ)
        try:
            eventually(
                lambda: (
                    client.hget(META, "fence") not in {before, None} or reseed.poll() is not None
                ),
                every_s=0.001,
            )
        finally:
            reseed.kill()
            reseed.wait()


async def test_reseeds_during_updates_neither_lose_nor_repeat_actions(
    system: System,
) -> None:
    updates = make_updates(count=1500, users=60, repeats=0.3)

    async with asyncio.TaskGroup() as group:
        playing = group.create_task(play(system, updates, concurrency=8))
        for _ in range(3):
            await asyncio.to_thread(kill_reseed_after_fence, system)
        assert not playing.done()
        done = await asyncio.to_thread(system.run, "reseed", "--force", "--yes")
        assert done.returncode == 0, done.stderr
        verified = await asyncio.to_thread(system.run, "verify", "--full")
        assert verified.returncode == 0, verified.stdout

    check_answers(playing.result(), updates)
    check_stores(system, updates)
