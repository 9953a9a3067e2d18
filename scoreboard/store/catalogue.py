"""The action catalogue in memory: the kinds of actions, updated without a restart.

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
from scoreboard.model import ActionKind, kind_of
from scoreboard.runtime.lifecycle import backoff_s
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import get_logger
from scoreboard.store.catalogue_mirror import CatalogueMirror
from scoreboard.store.keys import ACTIONS_CHANGED
from scoreboard.store.subscription import Subscription

RELOAD_S: Final = 30.0
_VERSION: Final = re.compile(rb"[!-~]{1,64}")
_UNRESTRICTED: Final = ActionKind(0)
_log = get_logger(__name__)


class Catalogue:
    """Kinds of actions by name. Run ``run`` in a task group."""

    def __init__(self, settings: Settings, store: CatalogueMirror) -> None:
        self._store = store
        self._default = ActionKind(settings.default_points)
        self._counts_unknown = settings.unknown_kinds == "default"
        self._kinds: Mapping[str, ActionKind] | None = None
        self._restricted: Mapping[str, ActionKind] = {}
        """The kinds that have more than points."""
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
        return self._kinds is not None

    def kind_of_action(self, action_id: str) -> ActionKind:
        """Return the kind of an action, which earns points; the default for one without a kind.

        Raises UnknownKind if its kind is disabled, or is not in the catalogue and the settings do
        not allow unknown kinds; RedisUnavailable before the first read.
        """
        kinds = self._kinds
        if kinds is None:
            raise RedisUnavailable("The action catalogue is not loaded yet")
        kind = kind_of(action_id)
        found = kinds.get(kind)
        if found is None and (not kind or self._counts_unknown):
            found = self._default
        if found is None or not found.points:
            raise UnknownKind(
                f"Actions of kind {kind!r} earn no points"
                if kind
                else "The actionId must start with a kind, as in kind:unique"
            )
        return found

    def points_of(self, action_id: str) -> int:
        """Return the points of an action.

        Raises as ``kind_of_action`` does.
        """
        return self.kind_of_action(action_id).points

    def restrictions(self, action_id: str) -> ActionKind:
        """Return the kind of an action if it has restrictions, else one without any.

        Raises RedisUnavailable before the first read.
        """
        if self._restricted:
            return self._restricted.get(kind_of(action_id), _UNRESTRICTED)
        if self._kinds is None:
            raise RedisUnavailable("The action catalogue is not loaded yet")
        return _UNRESTRICTED

    async def load(self) -> None:
        """Read the catalogue now.

        Raises RedisUnavailable, UnexpectedReply if a value is not one of the catalogue.
        """
        kinds = await self._store.kinds()
        if kinds != self._kinds:
            _log.info("catalogue_changed", kinds=len(kinds))
        self._restricted = {name: kind for name, kind in kinds.items() if kind.is_restricted}
        self._kinds = kinds

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
