"""The update without the framework, because it is the most frequent request.

It answers exactly as api.endpoints.scores.update does; a test sends both the same requests. It
saves routing, signature models and response objects (docs/explanation/benchmarks.md, section API).
"""

from collections.abc import MutableMapping
from typing import Any, Final

import msgspec

from api.documents.schemas import UpdateRequest
from api.edge.bodies import body_decoder
from api.edge.rate_limit import Quota
from api.endpoints.update_replies import (
    HEADERS,
    JSON,
    audited,
    make_reply,
    respond_to_boards,
)
from api.endpoints.updates import Outcome, UpdateService
from scoreboard.errors import UnsupportedMedia
from scoreboard.http.query import parse_query
from scoreboard.http.request import Request
from scoreboard.http.response import HttpResponse
from scoreboard.security.access import require_updater
from scoreboard.security.tokens import Verifier

PATH: Final = "/api/scores/update"
PARAMETERS: Final = frozenset({"board"})
"""Query parameters of an update."""

parse_update: Final = body_decoder(UpdateRequest, '{"userId": "…", "actionId": "…"}')
"""Parse an update. Raises Malformed, Invalid."""

_encode: Final = msgspec.json.Encoder().encode


class FastUpdate:
    """Handles ``POST /api/scores/update``."""

    def __init__(self, verifier: Verifier, updates: UpdateService) -> None:
        self._verifier = verifier
        self._updates = updates

    async def __call__(self, request: Request) -> HttpResponse:
        """Apply one action.

        Raises any ScoreboardError; the router turns it into a problem.
        """
        headers, state = request.head.headers, request.state
        board = state["board_name"] = parse_query(request.head.query, PARAMETERS).get("board")
        authorization = headers.get(b"authorization")
        caller = state["caller"] = await self._verifier.authenticate(authorization)
        state["update"] = None  # not parsed yet
        trusted = require_updater(caller)
        check_media_type(headers.get(b"content-type"))
        update = state["update"] = parse_update(await request.read_body())
        result, quota = await self._updates.apply(
            caller, update, board, request.id, trusted=trusted
        )
        if isinstance(result, Outcome):
            return answer_boards(update, result, request.id, state, quota)
        receipt = state["receipt"] = result
        reply = _encode(make_reply(receipt))
        return HttpResponse(200, [*HEADERS, *(quota.headers() if quota else ())], reply)


def answer_boards(
    update: UpdateRequest,
    outcome: Outcome,
    request_id: str,
    state: MutableMapping[str, Any],
    quota: Quota | None,
) -> HttpResponse:
    """Return the response to an action of several boards, and note what the access log needs.

    The response is a problem if one of them has not counted it.
    """
    state["audited"] = list(audited(update, outcome))
    if outcome.error is not None:
        state["error"] = outcome.error
    return respond_to_boards(outcome, request_id, quota.headers() if quota else [])


def check_media_type(content_type: bytes | None) -> None:
    """Check that a body is JSON.

    Raises UnsupportedMedia.
    """
    if content_type == JSON:
        return
    if content_type is None or content_type.split(b";")[0].strip().lower() != JSON:
        raise UnsupportedMedia("Send the header Content-Type: application/json")
