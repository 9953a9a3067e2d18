"""The action catalogue in memory: the points of each kind, updated without a restart.

The api reads it on every update. PostgreSQL holds the catalogue, ``sb:actions`` is a copy, and a
message announces each change. The copy is also read every 30 s and after each reconnection, in case
a message is lost. Invariants: updates are refused (503) until the catalogue was read once; while
Redis is unreachable the last values are used.
"""

import asyncio
import re
from collections.abc import Mapping
from typing import Final

from scoreboard.errors import RedisUnavailable, ScoreboardError, UnknownKind
from scoreboard.model import kind_of
from scoreboard.runtime.lifecycle import backoff_s
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import get_logger
from scoreboard.store.catalogue_mirror import CatalogueMirror
from scoreboard.store.keys import ACTIONS_CHANGED
from scoreboard.store.subscription import Subscription

RELOAD_S: Final = 30.0
_VERSION: Final = re.compile(rb"[!-~]{1,64}")
_log = get_logger(__name__)


class Catalogue:
    """Points per kind. Run ``run`` in a task group."""

    def __init__(self, settings: Settings, store: CatalogueMirror) -> None:
        self._store = store
        self._default = settings.default_points
        self._counts_unknown = settings.unknown_kinds == "default"
        self._points: Mapping[str, int] | None = None
        self._changed = asyncio.Event()
        self._changes = Subscription(
            settings,
            [ACTIONS_CHANGED],
            name="api-catalogue",
            on_change=lambda _channel: self._changed.set(),
            on_up=self._changed.set,
            on_down=lambda: None,
            message=_VERSION,
        )

    @property
    def is_loaded(self) -> bool:
        """Return whether the catalogue was read at least once."""
        return self._points is not None

    def points_of(self, action_id: str) -> int:
        """Return the points of an action; the default for an action without a kind.

        Raises UnknownKind if its kind is disabled, or is not in the catalogue and the settings do
        not allow unknown kinds; RedisUnavailable before the first read.
        """
        points = self._points
        if points is None:
            raise RedisUnavailable("The action catalogue is not loaded yet")
        kind = kind_of(action_id)
        value = points.get(kind)
        if value is None and (not kind or self._counts_unknown):
            value = self._default
        if not value:
            raise UnknownKind(
                f"Actions of kind {kind!r} earn no points"
                if kind
                else "The actionId must start with a kind, as in kind:unique"
            )
        return value

    async def load(self) -> None:
        """Read the catalogue now.

        Raises RedisUnavailable, UnexpectedReply if a value is not a number of points.
        """
        points = await self._store.points()
        if points != self._points:
            _log.info("catalogue_changed", kinds=len(points))
        self._points = points

    async def run(self) -> None:
        """Keep the catalogue current until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._changes.run())
            tasks.create_task(self._reload())

    async def _reload(self) -> None:
        attempt = 0
        while True:
            self._changed.clear()
            try:
                await self.load()
            except ScoreboardError as error:
                attempt += 1
                if attempt == 1:
                    _log.warning(
                        "catalogue_reload_failed", is_loaded=self.is_loaded, reason=error.detail
                    )
                wait_s = backoff_s(attempt)
            else:
                attempt, wait_s = 0, RELOAD_S
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                pass
