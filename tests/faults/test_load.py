"""The load of the campaigns: a paused load sends nothing while the stores are compared."""

import asyncio
from pathlib import Path

from tests.faults.clients import ActionAnswers, Client, Load

CALLS: list[str] = []


class Counting(Client):
    """A client that records its calls and sends nothing."""

    async def send_until_known(self, user: str, action: str, points: int) -> None:
        """Record a call that lasts a turn of the loop."""
        self._history.actions.setdefault((user, action), ActionAnswers(points))
        CALLS.append(action)
        await asyncio.sleep(0)


async def test_a_pause_right_after_a_resume_stops_every_client(tmp_path: Path) -> None:
    load = Load(tmp_path, 1, "", clients=3, pace_s=0, make=Counting)
    async with load:
        load.pause()
        await load.wait_until_paused()
        load.resume()
        load.pause()
        await load.wait_until_paused()
        CALLS.clear()
        for _ in range(20):
            await asyncio.sleep(0)

        assert CALLS == []
