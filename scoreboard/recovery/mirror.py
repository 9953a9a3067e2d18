"""Copies the catalogue of actions from PostgreSQL, which keeps it, to Redis, which the api reads.

Called after every change and by a reseed. What stays true: copies are made one after the other,
each of what is committed then, so the last one is the newest.
"""

from scoreboard.ledger.actions import lock_catalogue, select_points
from scoreboard.ledger.pool import Connection, translate_errors
from scoreboard.store.store import Store


async def mirror_catalogue(store: Store, connection: Connection) -> int:
    """Copy the catalogue and tell the api; give how many kinds it has.

    ``connection`` is in autocommit and in no transaction.

    Raises RedisUnavailable, Outdated, DatabaseUnavailable: run it again.
    """
    async with translate_errors(), connection.transaction():
        await lock_catalogue(connection)
        seen = await store.catalogue_version()
        # A session that answers now has held the lock since before the version was read.
        points = await select_points(connection)
        await store.mirror_actions(points, seen=seen)
    return len(points)
