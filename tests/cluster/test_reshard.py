"""A reshard on a cluster: the new partitions are in slots of other primaries."""

import pytest

from scoreboard.model import Board, Layout, Partition
from scoreboard.runtime.settings import Secret, Settings
from tests.integration.test_reshard import (
    Load,
    check_repeats,
    check_verified,
    do_reshard,
    under_load,
)
from tests.support.eventually import eventually_async
from tests.support.servers.clusters import Cluster
from tests.support.servers.flushers import flushing, make_board, query, store_of

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(cluster: Cluster, database_url: str) -> Settings:
    return Settings(
        redis_url=Secret(cluster.url), database_url=Secret(database_url), flusher_metrics_port=0
    )


async def check_sound(settings: Settings, partitions: int, load: Load) -> None:
    async with store_of(settings) as store:

        async def is_drained() -> bool:
            backlogs = [await store.backlog(Partition("main", n)) for n in range(partitions)]
            return all(backlog.is_drained for backlog in backlogs)

        await eventually_async(is_drained)
    rows = query(
        settings,
        "SELECT u.external_id, e.action_id, e.delta FROM score_events e"
        " JOIN users u ON u.id = e.user_id",
    )
    wanted = [(one.user_id, one.action_id, one.delta) for one, _ in load.acknowledged]
    assert sorted(rows) == sorted(wanted)
    await check_verified(settings)
    await check_repeats(settings, load)


async def test_a_board_is_resharded_on_a_cluster_while_it_is_used(settings: Settings) -> None:
    await make_board(settings, Board(layout=Layout(partitions=2)))
    async with flushing(settings):
        async with under_load(settings) as load:
            for size in (5, 1, 3):
                done = await do_reshard(settings, size)
                assert done.pause_s < 3
            played, read = len(load.acknowledged), len(load.read_times)
            await eventually_async(lambda: len(load.acknowledged) > played + 50)
            await eventually_async(lambda: len(load.read_times) > read + 20)
        await check_sound(settings, 3, load)
    assert load.failed_reads == 0
