"""The copy of the catalogue of actions in Redis."""

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Final

import redis.asyncio as aioredis
from msgspec import Meta

from scoreboard.errors import (
    UnexpectedReply,
)
from scoreboard.model import (
    COUNT_MAX,
    POINTS_MAX,
)
from scoreboard.store.keys import ACTIONS, ACTIONS_CHANGED
from scoreboard.store.replies import checking_reply, convert, read_reply
from scoreboard.store.scripts import Script, call

_VERSION: Final = ":version"
"""Field of the catalogue's mirror that is no kind: how often it was copied."""
_WHOLE: Final = re.compile(r"\d{1,16}", re.ASCII)
_Points = Annotated[int, Meta(ge=0, le=POINTS_MAX)]
_MIRROR: Final = Script.load("mirror")


def _whole(text: str | None) -> int | None:
    """Read a whole number as the scripts do; None where it is none, or beyond a double."""
    number = int(text) if text is not None and _WHOLE.fullmatch(text) else None
    return number if number is None or number <= COUNT_MAX else None


class CatalogueMirror:
    """The copy of the catalogue of actions in Redis."""

    def __init__(self, client: aioredis.Redis) -> None:
        """Take a client that decodes replies (store.client.make_client does)."""
        self._client = client

    async def points(self) -> dict[str, int]:
        """Read the mirrored catalogue: points per kind, 0 where a kind is disabled.

        Raises RedisUnavailable, UnexpectedReply where it holds no points.
        """
        what = f"HGETALL {ACTIONS}"
        facts = await read_reply(self._client.hgetall(ACTIONS), dict[str, str], what)
        facts.pop(_VERSION, None)
        with checking_reply(what):
            return convert(facts, dict[str, _Points])

    async def catalogue_version(self) -> int:
        """Read how often the catalogue was copied; 0 where that cannot be read.

        Raises RedisUnavailable.
        """
        with suppress(UnexpectedReply):  # a key of another type, which the next copy replaces
            held = self._client.hmget(ACTIONS, [_VERSION])
            (version,) = await read_reply(held, tuple[str | None], f"HMGET {ACTIONS}")
            return _whole(version) or 0
        return 0

    async def mirror_actions(self, points: Mapping[str, int], *, seen: int) -> None:
        """Replace the catalogue that the api reads, and announce it.

        ``seen`` is the version, read before the catalogue was read from PostgreSQL.

        Raises Outdated (somebody else made a copy meanwhile), RedisUnavailable (it may have
        happened: begin anew), ScriptFailed.
        """
        flat = [value for pair in points.items() for value in pair]
        await call(self._client, _MIRROR, [ACTIONS], [seen, ACTIONS_CHANGED, *flat], int)
