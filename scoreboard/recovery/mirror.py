"""Copies the action catalogue from PostgreSQL to Redis, after every change and in a reseed.

Invariant: copies are serialised and each reads the committed catalogue, so the last is the newest.
"""

from scoreboard.ledger.actions import lock_catalogue, select_points
from scoreboard.ledger.pool import Connection, translate_errors
from scoreboard.store.catalogue_mirror import CatalogueMirror


async def mirror_catalogue(store: CatalogueMirror, connection: Connection) -> int:
    """Copy the catalogue and publish the change; return the number of kinds.

    ``connection`` is in autocommit and outside of a transaction.

    Raises RedisUnavailable, Outdated, DatabaseUnavailable: run it again.
    """
    async with translate_errors(), connection.transaction():
        await lock_catalogue(connection)
        seen = await store.catalogue_version()
        # The answer proves that the session held the lock when the version was read.
        points = await select_points(connection)
        await store.mirror_actions(points, seen=seen)
    return len(points)
