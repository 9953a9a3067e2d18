"""The copy of the action catalogue in Redis."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from scoreboard.errors import UnexpectedReply
from scoreboard.model import POINTS_MAX, ActionKind
from scoreboard.store.keys import ACTIONS, ACTIONS_CHANGED
from scoreboard.store.replies import checking_reply, convert, parse_whole, read_reply
from scoreboard.store.scripts import Script, call
from scoreboard.store.store_client import StoreClient

_VERSION: Final = ":version"
"""Field of the hash that holds the number of copies made. Fields with a colon are not kinds; those
that a later version adds are ignored."""

_RULES: Final = ":rules"
"""End of the name of the field with what a kind has besides its points, as JSON. A version before
it reads only the points."""

_Points = Annotated[int, Meta(ge=0, le=POINTS_MAX)]
_MIRROR: Final = Script.load("mirror")


class _Rules(Struct, frozen=True, omit_defaults=True):
    """The value of such a field. Members that a later version adds are ignored."""

    scope: str = ""
    boards: tuple[str, ...] = ()
    proof: bool = False


_NO_RULES: Final = _Rules()


class CatalogueMirror(StoreClient):
    """The copy of the action catalogue in Redis."""

    async def kinds(self) -> dict[str, ActionKind]:
        """Read all kinds of actions.

        Raises RedisUnavailable, UnexpectedReply if a value is not a number of points, or not rules.
        """
        what = f"HGETALL {ACTIONS}"
        facts = await read_reply(self._client.hgetall(ACTIONS), dict[str, str], what)
        found = {name: value for name, value in facts.items() if ":" not in name}
        with checking_reply(what):
            points = convert(found, dict[str, _Points])
            rules = {name: facts.get(name + _RULES) for name in points}
            return {name: _kind(points[name], rules[name]) for name in points}

    async def catalogue_version(self) -> int:
        """Read how many times the catalogue was copied; 0 if that cannot be read.

        Raises RedisUnavailable.
        """
        with suppress(UnexpectedReply):  # a key of another type, which the next copy replaces
            held = self._client.hmget(ACTIONS, [_VERSION])
            (version,) = await read_reply(held, tuple[str | None], f"HMGET {ACTIONS}")
            return parse_whole(version) or 0
        return 0

    async def mirror_actions(self, kinds: Mapping[str, ActionKind], *, seen: int) -> None:
        """Replace the catalogue in Redis and publish the change.

        ``seen`` is the version, read before the catalogue was read from PostgreSQL.

        Raises Outdated (another copy was made since), RedisUnavailable (the copy may have been
        made: start again from the version), ScriptFailed.
        """
        fields: list[str | int] = []
        for name, kind in kinds.items():
            fields += (name, kind.points)
            rules = _Rules(kind.scope, kind.boards, kind.needs_proof)
            if rules != _NO_RULES:
                fields += (name + _RULES, msgspec.json.encode(rules).decode())
        await call(self._client, _MIRROR, [ACTIONS], [seen, ACTIONS_CHANGED, *fields], int)


def _kind(points: int, text: str | None) -> ActionKind:
    """Return a kind; ``text`` is the value of its field of rules.

    Raises msgspec.MsgspecError.
    """
    if text is None:
        return ActionKind(points)
    rules = msgspec.json.decode(text, type=_Rules)
    return ActionKind(points, rules.scope, rules.boards, rules.proof)
