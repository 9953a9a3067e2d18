"""All that Redis holds, behind one client. Nothing else runs scripts, but for the dispatcher.

Reads may be repeated by the caller at will. Updates go through scoreboard.store.dispatcher.
"""

import redis.asyncio as aioredis

from scoreboard.store.boards import Boards
from scoreboard.store.catalogue_mirror import CatalogueMirror
from scoreboard.store.corrections import Corrections
from scoreboard.store.partitions import Partitions
from scoreboard.store.rebuilding import Rebuilding


class Store(Boards, Partitions, Corrections, Rebuilding, CatalogueMirror):
    """Typed access to the scripts over one client, which the caller owns and closes."""

    def __init__(self, client: aioredis.Redis) -> None:
        """Take a client that decodes replies (store.client.make_client does)."""
        super().__init__(client)
