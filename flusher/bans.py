"""Copies bans to a server that does not know them, such as a promoted replica.

Bans are copied to Redis once, when they are recorded. A server that took over from another one may
lack the latest of them, although it has everything that the ledger has. Invariants: commits are
blocked meanwhile; a run repeated after a crash changes nothing.
"""

from flusher.writer import Writer
from scoreboard.ledger.acts import select_bans
from scoreboard.model import Partition, partition_of
from scoreboard.recovery.corrections import correct_users
from scoreboard.runtime.telemetry import get_logger
from scoreboard.store.corrections import REPAIR_MAX
from scoreboard.store.store import Store

_log = get_logger(__name__)


async def copy_bans(
    writer: Writer, store: Store, partition: Partition, *, epoch: int, partitions: int
) -> None:
    """Make the bans of a partition in Redis those of PostgreSQL.

    ``partitions`` is the number of the board's partitions.

    Raises DatabaseUnavailable, RedisUnavailable, and the refusals of Store.repair.
    """
    async with writer.locked(epoch) as position:
        if position is None:
            return  # a reseed began another epoch, with the bans
        bans = await select_bans(writer.connection, partition.board)
        wanted = {user for user in bans if partition_of(user, partitions) == partition.number}
        differing = sorted(wanted ^ await store.banned(partition))
        for start in range(0, len(differing), REPAIR_MAX):
            page = differing[start : start + REPAIR_MAX]
            await correct_users(store, writer.connection, partition, page, position)
    if differing:
        _log.warning("bans_copied", partition=str(partition), count=len(differing))
