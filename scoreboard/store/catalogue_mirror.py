"""The copy of the action catalogue in Redis."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Final

from msgspec import Meta

from scoreboard.errors import UnexpectedReply
from scoreboard.model import POINTS_MAX
from scoreboard.store.keys import ACTIONS, ACTIONS_CHANGED
from scoreboard.store.replies import checking_reply, convert, parse_whole, read_reply
from scoreboard.store.scripts import Script, call
from scoreboard.store.store_client import StoreClient

_VERSION: Final = ":version"
"""Field of the hash that holds the number of copies made. Fields with a colon are not kinds; those
that a later version adds are ignored."""

_Points = Annotated[int, Meta(ge=0, le=POINTS_MAX)]
_MIRROR: Final = Script.load("mirror")


class CatalogueMirror(StoreClient):
    """The copy of the action catalogue in Redis."""

    async def points(self) -> dict[str, int]:
        """Read the points of each kind, 0 where a kind is disabled.

        Raises RedisUnavailable, UnexpectedReply if a value is not a number of points.
        """
        what = f"HGETALL {ACTIONS}"
        facts = await read_reply(self._client.hgetall(ACTIONS), dict[str, str], what)
        kinds = {name: value for name, value in facts.items() if ":" not in name}
        with checking_reply(what):
            return convert(kinds, dict[str, _Points])

    async def catalogue_version(self) -> int:
        """Read how many times the catalogue was copied; 0 if that cannot be read.

        Raises RedisUnavailable.
        """
        with suppress(UnexpectedReply):  # a key of another type, which the next copy replaces
            held = self._client.hmget(ACTIONS, [_VERSION])
            (version,) = await read_reply(held, tuple[str | None], f"HMGET {ACTIONS}")
            return parse_whole(version) or 0
        return 0

    async def mirror_actions(self, points: Mapping[str, int], *, seen: int) -> None:
        """Replace the catalogue in Redis and publish the change.

        ``seen`` is the version, read before the catalogue was read from PostgreSQL.

        Raises Outdated (another copy was made since), RedisUnavailable (the copy may have been
        made: start again from the version), ScriptFailed.
        """
        flat = [value for pair in points.items() for value in pair]
        await call(self._client, _MIRROR, [ACTIONS], [seen, ACTIONS_CHANGED, *flat], int)
