"""Sessions of PostgreSQL that partitions leave to others.

To open one costs more than to flush a small batch, so partitions that take turns hand it on.
Invariant: a session that is kept here holds no lease, and is closed soon if nobody takes it.
"""

import asyncio
import time
from collections import deque
from typing import Final

from flusher.session import IDLE_LIMIT_S
from flusher.writer import Writer
from scoreboard.errors import DatabaseUnavailable
from scoreboard.model import Partition
from scoreboard.runtime.settings import Settings

KEPT_S: Final = IDLE_LIMIT_S / 4
"""How long a session is kept; the server ends it after ``IDLE_LIMIT_S``."""


class SpareSessions:
    """Opens sessions and keeps those that are left, at most ``flush_partitions``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._kept: deque[tuple[float, Writer]] = deque()
        self._closing: asyncio.Task[None] | None = None

    async def open(self, partition: Partition) -> Writer:
        """Return a session for a partition: the one that was left last, or a new one.

        Raises DatabaseUnavailable, SchemaMismatch, UnsafeDatabase.
        """
        while self._kept:
            _, writer = self._kept.pop()
            if not writer.connection.closed and not writer.connection.is_login_outdated:
                return Writer(writer.connection, partition)
            await writer.aclose()
        return await Writer.open(self._settings, partition)

    async def leave(self, writer: Writer) -> None:
        """Release the lease of a session and keep it for another partition, if there is room."""
        if len(self._kept) >= self._settings.flush_partitions:
            await writer.aclose()
            return
        try:
            await writer.release_lease()
        except DatabaseUnavailable:
            await writer.aclose()
            return
        self._kept.append((time.monotonic(), writer))
        if self._closing is None or self._closing.done():
            self._closing = asyncio.create_task(self._close_unused())

    async def close_all(self) -> None:
        """Close what is kept."""
        if self._closing is not None:
            self._closing.cancel()
        while self._kept:
            _, writer = self._kept.pop()
            await writer.aclose()

    async def _close_unused(self) -> None:
        while self._kept:
            left_at_s, _ = self._kept[0]
            wait_s = left_at_s + KEPT_S - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            else:
                _, writer = self._kept.popleft()
                await writer.aclose()
