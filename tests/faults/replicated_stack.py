"""The system for fault tests on servers with replicas, of which one is promoted after a failure.

Services know the servers by one URL; the proxies of the plain stack stay unused, except the one
before PostgreSQL.
"""

import asyncio
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from scoreboard.model import Board
from tests.faults.stack import Stack
from tests.support.clients.forked import run_forked


class ReplicatedStack(Stack):
    """A stack whose updates are acknowledged when a replica has them, or after the fsync alone."""

    def __init__(
        self,
        folder: Path,
        redis: AbstractContextManager[Any],
        *,
        boards: Sequence[Board],
        replicas: int = 1,
        acknowledge: str = "replicated",
        source: Path | None = None,
    ) -> None:
        """``redis`` starts the servers and has the ``url`` by which services know them.

        ``replicas`` is the number that has to confirm an update.
        """
        super().__init__(folder, boards=boards, source=source)
        self._acknowledge = acknowledge
        self._redis: Any = redis
        self.replicas = replicas if acknowledge == "replicated" else 0
        self.failovers = 0
        self._is_started = False

    @property
    def redis_url(self) -> str:
        """Return the address of the servers."""
        return str(self._redis.url)

    @property
    def redis_variables(self) -> dict[str, str]:
        """Return the variables by which services know the servers."""
        replicas = {"SCOREBOARD_REPLICAS": str(self.replicas)} if self.replicas else {}
        return {
            "REDIS_URL": self.redis_url,
            "SCOREBOARD_ACKNOWLEDGE": self._acknowledge,
            **replicas,
        }

    async def start_redis(self) -> None:
        """Start the servers with their replicas."""
        await asyncio.to_thread(self._redis.__enter__)
        self._is_started = True

    async def stop_redis(self) -> None:
        """End all servers."""
        if self._is_started:
            await asyncio.to_thread(self._redis.__exit__)

    async def verify(self) -> list[str]:
        """Run `scoreboard verify --full` on each board; return what it finds."""
        environment = {**os.environ, **self.redis_variables, "DATABASE_URL": self.postgres.url}
        found: list[str] = []
        for board in self.boards:
            words = ("verify", "--full", "--board", board.name)
            done = await asyncio.to_thread(run_forked, "cli", words, environment)
            if done.returncode:
                found.append(f"verify: {board.name}: {done.stdout} {done.stderr}")
        return found
