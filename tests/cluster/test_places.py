"""Places of users on boards of a cluster: read from the partitions of all primaries."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from scoreboard.model import Action, Board, Layout, Row
from scoreboard.store.client import make_client
from scoreboard.store.store import Store
from streamer.handshake.listener import make_listener
from streamer.server import Streamer, running
from tests.support.clients.viewer import PATH, Connect, RawViewer, streamer_settings
from tests.support.eventually import eventually_async
from tests.support.servers.api import open_boards
from tests.support.servers.clusters import Cluster
from tests.support.servers.flushers import dispatching

pytestmark = pytest.mark.slow

SPREAD = Board("spread", layout=Layout(partitions=8))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.fanout.turns.PERIOD_S", 0.1)


@asynccontextmanager
async def streaming(cluster: Cluster, jwks_file: Path) -> AsyncIterator[tuple[Streamer, int]]:
    """Run a streamer whose default board is spread over all primaries."""
    await open_boards(cluster.url, SPREAD)
    settings = streamer_settings(cluster.url, jwks_file=jwks_file, boards="spread")
    streamer = Streamer(settings, tick_s=0.1)
    async with running(streamer):
        listener = make_listener(settings, shared=False)
        await streamer.listen(listener)
        await eventually_async(lambda: streamer.watcher.is_ready)
        yield streamer, listener.getsockname()[1]


def place_of(rows: tuple[Row, ...], user: str) -> dict[str, Any]:
    at = next(index for index, row in enumerate(rows) if row.user_id == user)
    shown = [{"rank": one.rank, "userId": one.user_id, "score": one.score} for one in rows]
    place: dict[str, Any] = {"rank": at + 1, "score": rows[at].score, "total": len(rows)}
    place |= {"above": shown[max(0, at - 2) : at], "below": shown[at + 1 : at + 3]}
    if at:
        place["toNext"] = rows[at - 1].score - rows[at].score
    if at >= 10:
        place["toTop"] = rows[9].score - rows[at].score
    return place


async def settled(viewer: RawViewer, user: str, right: dict[str, Any]) -> None:
    """Read until the last place of a user is the right one."""

    def told() -> dict[str, Any]:
        of = [one for one in viewer.messages if one["type"] == "place" and one["userId"] == user]
        last = of[-1] if of else {}
        return {
            name: last[name]
            for name in ("rank", "score", "total", "above", "below", "toNext", "toTop")
            if name in last
        }

    async with asyncio.timeout(20):
        while told() != right:
            await viewer.next("place")


async def test_places_of_a_board_over_all_primaries_are_right(
    cluster: Cluster, jwks_file: Path, connect: Connect
) -> None:
    choose = random.Random(8)
    users = [f"user-{number}" for number in range(40)]
    async with streaming(cluster, jwks_file) as (_, port):
        settings = streamer_settings(cluster.url, jwks_file=jwks_file, boards="spread")
        async with dispatching(settings) as store:
            for number, user in enumerate(users):
                await store.submit("spread", Action(user, "win:1", choose.randint(1, 12)))
                del number
            viewers: dict[str, RawViewer] = {}
            for start in range(0, len(users), 5):
                viewer = await connect(port, PATH)
                ids = users[start : start + 5]
                await viewer.send_json({"type": "watch", "userIds": ids})
                viewers |= dict.fromkeys(ids, viewer)
            for turn in range(2, 5):
                for user in choose.sample(users, 8):
                    await store.submit("spread", Action(user, f"win:{turn}", choose.randint(1, 9)))
                async with make_client(settings, name="test") as client:
                    rows = (await Store(client).leaderboard("spread", limit=100)).rows
                for user, viewer in viewers.items():
                    await settled(viewer, user, place_of(rows, user))


async def test_places_follow_after_a_primary_was_replaced(
    cluster: Cluster, jwks_file: Path, connect: Connect
) -> None:
    async with streaming(cluster, jwks_file) as (_, port):
        settings = streamer_settings(cluster.url, jwks_file=jwks_file, boards="spread")
        async with dispatching(settings) as store:
            await store.submit("spread", Action("ada", "win:1", 5))
            viewer = await connect(port, PATH)
            await viewer.send_json({"type": "watch", "userIds": ["ada"]})
            assert (await viewer.next("place"))["score"] == 5
            for number, primary in enumerate(cluster.primaries(), 2):
                cluster.failover(cluster.replicas_of(primary)[0])
                await store.submit("spread", Action("ada", f"win:{number}", 1))
            async with asyncio.timeout(30):
                while (await viewer.next("place"))["score"] != 8:
                    pass
