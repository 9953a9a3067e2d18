"""Copies the catalogue of actions from PostgreSQL, which keeps it, to Redis, which the api reads.

Called after every change and by a reseed. What stays true: copies are made one after the other,
each of what is committed then, so the last one is the newest.
"""

from scoreboard import archive
from scoreboard.live import Live
from scoreboard.postgres import Connection


async def mirror_catalogue(live: Live, connection: Connection) -> int:
    """Copy the catalogue and tell the api; give how many kinds it has.

    ``connection`` is in autocommit and in no transaction.

    Raises RedisUnavailable, Outdated, DatabaseUnavailable: run it again.
    """
    async with archive.reaching(), connection.transaction():
        await archive.lock_catalogue(connection)
        seen = await live.catalogue_version()
        # A session that answers now has held the lock since before the version was read.
        points = await archive.select_points(connection)
        await live.mirror_actions(points, seen=seen)
    return len(points)
