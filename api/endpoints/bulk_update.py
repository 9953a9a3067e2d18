"""Many updates in one request: ``POST /api/scores/updates``.

Each action counts by itself: an invalid or refused one does not affect the others, and each can be
repeated by itself. Only trusted callers may send them, so a player cannot evade the limit per user.
"""

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from api.documents.schemas import UpdateItem
from api.edge.bodies import body_decoder
from api.endpoints.fast_update import check_media_type
from api.endpoints.update_replies import HEADERS, audited, encode_results
from api.endpoints.updates import UpdateService
from scoreboard.errors import Invalid, ScoreboardError
from scoreboard.http.query import parse_query
from scoreboard.http.request import Request
from scoreboard.http.response import HttpResponse
from scoreboard.model import BULK_MAX
from scoreboard.security.access import require_bulk_updater
from scoreboard.security.tokens import Verifier

PATH: Final = "/api/scores/updates"


class _Bulk(Struct, frozen=True, forbid_unknown_fields=True):
    """The body; each action is parsed by itself."""

    updates: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=BULK_MAX)]


_EXAMPLE: Final = '{"updates": [{…}, …]}'
_decode: Final = body_decoder(_Bulk, _EXAMPLE)
_decode_item: Final = body_decoder(UpdateItem, _EXAMPLE)


class BulkUpdate:
    """Handles ``POST /api/scores/updates``."""

    def __init__(self, verifier: Verifier, updates: UpdateService) -> None:
        self._verifier = verifier
        self._updates = updates

    async def __call__(self, request: Request) -> HttpResponse:
        """Apply many actions.

        Raises any ScoreboardError that concerns the whole request.
        """
        headers, state = request.head.headers, request.state
        parse_query(request.head.query, ())
        caller = await self._verifier.authenticate(headers.get(b"authorization"))
        state["caller"] = caller
        require_bulk_updater(caller)
        check_media_type(headers.get(b"content-type"))
        items = parse_bulk(await request.read_body())
        results, quota = await self._updates.apply_each(caller, items, request.id)
        state["audited"] = [
            line
            for item, result in zip(items, results, strict=True)
            for line in audited(item, result)
        ]
        return HttpResponse(
            200,
            [*HEADERS, *(quota.headers() if quota else ())],
            encode_results(items, results, request.id),
        )


def parse_bulk(body: bytes) -> list[UpdateItem | ScoreboardError]:
    """Parse a bulk request; an action that violates the schema is its error.

    Raises Malformed for invalid JSON, Invalid if it is not a list of 1 to 100 actions.
    """
    return [_parse_item(item) for item in _decode(body).updates]


def _parse_item(item: msgspec.Raw) -> UpdateItem | ScoreboardError:
    try:
        return _decode_item(bytes(item))
    except Invalid as error:
        return error
