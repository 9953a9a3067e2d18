"""The update without the framework: the one request whose cost matters, in few steps.

It does what api.scores.update does and answers the same; a test sends both the same requests. It
saves routing, signature models and response objects (docs/benchmarks.md, section API).
"""

from typing import Final
from urllib.parse import parse_qsl

import msgspec

from api.authentication import authenticate, require_updater
from api.deadlines import Deadlines
from api.middleware import Answer, Receive, Request
from api.problems import Headers
from api.schemas import UpdateReply, UpdateRequest
from api.updates import Updates
from scoreboard.auth import Verifier
from scoreboard.errors import (
    BodyTooLarge,
    Invalid,
    Malformed,
    UnsupportedMedia,
)
from scoreboard.settings import Settings

JSON: Final = b"application/json"
_HEADERS: Final[Headers] = [(b"content-type", JSON), (b"cache-control", b"no-store")]

_decode: Final = msgspec.json.Decoder(UpdateRequest).decode
_encode: Final = msgspec.json.Encoder().encode


class DirectUpdate:
    """Handles ``POST /api/scores/update``."""

    def __init__(self, settings: Settings, verifier: Verifier, updates: Updates) -> None:
        self._body_bytes = settings.body_bytes
        self._body_deadlines = Deadlines(settings.body_timeout_s)
        self._verifier = verifier
        self._updates = updates

    async def __call__(self, request: Request) -> Answer:
        """Apply one action.

        Raises any ScoreboardError, which the caller turns into a problem.
        """
        caller = await authenticate(self._verifier, request.headers)
        trusted = require_updater(caller)
        check_media(request.headers.get(b"content-type"))
        self._check_length(request.headers.get(b"content-length"))
        try:
            with self._body_deadlines.begin(request.task, request.loop):
                body = await self._read(request.receive)
        except TimeoutError:
            raise Malformed(
                f"The body did not arrive within {self._body_deadlines.limit_s:g} s"
            ) from None
        receipt, quota = await self._updates.apply(
            caller, parse(body), board_of(request.query), request.id, trusted=trusted
        )
        reply = _encode(UpdateReply(True, receipt.score, receipt.replayed))
        return Answer(200, _HEADERS if quota is None else [*_HEADERS, *quota.headers()], reply)

    async def run(self) -> None:
        """End bodies that do not arrive, until cancelled."""
        await self._body_deadlines.run()

    def _check_length(self, stated: bytes | None) -> None:
        # The server has checked that it is a number.
        if stated is not None and int(stated) > self._body_bytes:
            raise self._too_large()

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"A body has at most {self._body_bytes} bytes")

    async def _read(self, receive: Receive) -> bytes:
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise Malformed("The body ended before it was complete")
            body = body + message["body"] if body else message["body"]
            if len(body) > self._body_bytes:
                raise self._too_large()
            if not message["more_body"]:
                return body


def check_media(content_type: bytes | None) -> None:
    """Let JSON pass.

    Raises UnsupportedMedia.
    """
    if content_type == JSON:
        return
    if content_type is None or content_type.split(b";")[0].strip().lower() != JSON:
        raise UnsupportedMedia("Send the header Content-Type: application/json")


def parse(body: bytes) -> UpdateRequest:
    """Read an update.

    Raises Malformed for what is no JSON, Invalid for what is no update.
    """
    try:
        return _decode(body)
    except msgspec.ValidationError as error:
        raise Invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Malformed(
            'The body is not JSON; send {"userId": "…", "actionId": "…"}'
            if body
            else 'The body is empty; send {"userId": "…", "actionId": "…"}'
        ) from None


def board_of(query: bytes) -> str | None:
    """Give the board a query string names, if it does.

    Raises Invalid where it names two.
    """
    if not query:
        return None
    values = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    boards = [value for name, value in values if name == "board"]
    if len(boards) > 1:
        raise Invalid("board: name one")
    return boards[0] if boards else None
