"""Leaderboard and standings without the framework, because they are the most frequent reads.

A request whose parameters are not in their usual form, right or wrong, is left to the framework:
its handlers in api.endpoints.scores and api.endpoints.rankings are the reference implementation,
and a test sends both the same requests.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from msgspec import Struct

from api.endpoints.board_reader import BoardReader, Page, etag_matches
from scoreboard.errors import Invalid, ScoreboardError
from scoreboard.http.query import parse_query
from scoreboard.http.request import Request
from scoreboard.http.response import NOSNIFF, HttpResponse
from scoreboard.model import (
    AROUND_MAX,
    ID_FORM,
    PAGE_MAX,
    SCORE_MAX,
    USERS_MAX,
    Board,
    is_identifier,
)
from scoreboard.security.access import require_read
from scoreboard.security.tokens import Caller, Verifier, bearer_token

LEADERBOARD_PATH: Final = "/api/scores/leaderboard"
STANDING_PATH: Final = "/api/scores/users/{user_id}"
STANDINGS_PATH: Final = "/api/scores/users"
OWN_STANDING_PATH: Final = "/api/scores/me"
IDS: Final = "ids"
"""The parameter of a list of users."""

VARY: Final = "Accept-Encoding, Authorization"
PUBLIC: Final = "public, max-age=1, stale-while-revalidate=2"
PRIVATE: Final = "private, no-store"

QUERIES_MAX: Final = 256
"""Maximum number of query strings whose parameters are remembered."""

_WINDOW_PARAMETERS: Final = frozenset({"board", "limit", "offset", "names"})
_STANDING_PARAMETERS: Final = frozenset({"board", "around"})
_STANDINGS_PARAMETERS: Final = frozenset({"board", "names", IDS})
_NAMES: Final = {"true": True, "false": False}
_WHOLE: Final = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)
_VARY: Final = (b"vary", VARY.encode())
_JSON: Final = (b"content-type", b"application/json")
_CACHE: Final = {
    True: (b"cache-control", PUBLIC.encode()),
    False: (b"cache-control", PRIVATE.encode()),
}


class _Window(Struct, frozen=True):
    board: str | None
    limit: int
    offset: int
    names: bool


class _Users(Struct, frozen=True):
    board: str | None
    names: bool
    user_ids: tuple[str, ...]


class FastReads:
    """Handles ``GET`` and ``HEAD`` of leaderboard and standings."""

    def __init__(self, verifier: Verifier, reads: BoardReader) -> None:
        self._verifier = verifier
        self._reads = reads

    async def leaderboard(self, request: Request) -> HttpResponse | None:
        """Return a page of the ranking, or None to leave the request to the framework.

        Raises any ScoreboardError.
        """
        window = _parse_window(request.head.query)
        if window is None:
            return None
        board = await self.require_read_access(window.board, request.head.headers)
        page = await self._reads.leaderboard(
            board.name, limit=window.limit, offset=window.offset, names=window.names
        )
        return _respond(request, page, is_public=board.is_public)

    async def standing(self, request: Request) -> HttpResponse | None:
        """Return a user's standing, or None to leave the request to the framework.

        Raises any ScoreboardError.
        """
        user_id = request.head.path.rpartition("/")[2]
        parsed = _parse_around(request.head.query)
        if parsed is None or not is_identifier(user_id):
            return None
        named, around = parsed
        board = await self.require_read_access(named, request.head.headers)
        page = await self._reads.standing(board.name, user_id, around=around)
        return _respond(request, page, is_public=board.is_public)

    async def standings(self, request: Request) -> HttpResponse | None:
        """Return the standings of some users, or None to leave the request to the framework.

        Raises any ScoreboardError.
        """
        asked = _parse_users(request.head.query)
        if asked is None:
            return None
        board = await self.require_read_access(asked.board, request.head.headers)
        page = await self._reads.standings(board.name, asked.user_ids, names=asked.names)
        return _respond(request, page, is_public=board.is_public)

    async def own_standing(self, request: Request) -> HttpResponse | None:
        """Return the caller's standing, or None to leave the request to the framework.

        Raises any ScoreboardError.
        """
        parsed = _parse_around(request.head.query)
        if parsed is None:
            return None
        named, around = parsed
        board, caller = await self.require_own_access(named, request.head.headers)
        page = await self._reads.standing(board.name, caller.subject, around=around)
        return _respond(request, page, is_public=False)

    async def require_read_access(self, named: str | None, headers: Mapping[bytes, bytes]) -> Board:
        """Return the named or default board, which the caller of a request may read.

        Raises Unauthenticated, Forbidden, and what BoardReader.find raises.
        """
        bearer_token(headers.get(b"authorization"))  # a malformed header is refused on every board
        board = await self._reads.find(named)
        if not board.is_public:
            caller = await self._verifier.authenticate(headers.get(b"authorization"))
            require_read(caller, is_public=False)
        return board

    async def require_own_access(
        self, named: str | None, headers: Mapping[bytes, bytes]
    ) -> tuple[Board, Caller]:
        """Return the named or default board, and the caller, whose own score it is to read.

        Raises what ``require_read_access`` raises, and Unauthenticated on every board.
        """
        caller = await self._verifier.authenticate(headers.get(b"authorization"))
        return await self.require_read_access(named, headers), caller


def parse_user_ids(text: str) -> tuple[str, ...]:
    """Return the users of a list that is separated by commas, each once.

    Raises Invalid.
    """
    found = tuple(dict.fromkeys(text.split(",")))
    if not all(map(is_identifier, found)):
        raise Invalid(f"ids must be users, separated by commas; each is {ID_FORM}")
    if len(found) > USERS_MAX:
        raise Invalid(f"ids: at most {USERS_MAX} users")
    return found


@lru_cache(QUERIES_MAX)
def _parse_users(query: bytes) -> _Users | None:
    values = _parse(query, _STANDINGS_PARAMETERS, joined=IDS)
    if values is None or IDS not in values:
        return None
    names = _NAMES.get(values.get("names", "false"))
    if names is None:
        return None
    try:
        return _Users(values.get("board"), names, parse_user_ids(values[IDS]))
    except Invalid:
        return None  # the framework's handler refuses it


@lru_cache(QUERIES_MAX)
def _parse_window(query: bytes) -> _Window | None:
    values = _parse(query, _WINDOW_PARAMETERS)
    if values is None:
        return None
    limit = _parse_number(values.get("limit", "10"), 1, PAGE_MAX)
    offset = _parse_number(values.get("offset", "0"), 0, SCORE_MAX)
    names = _NAMES.get(values.get("names", "false"))
    if limit is None or offset is None or names is None:
        return None
    return _Window(values.get("board"), limit, offset, names)


@lru_cache(QUERIES_MAX)
def _parse_around(query: bytes) -> tuple[str | None, int] | None:
    values = _parse(query, _STANDING_PARAMETERS)
    around = None if values is None else _parse_number(values.get("around", "0"), 0, AROUND_MAX)
    return None if values is None or around is None else (values.get("board"), around)


def _parse(
    query: bytes, known: frozenset[str], *, joined: str | None = None
) -> dict[str, str] | None:
    try:
        return parse_query(query, known, joined=joined)
    except ScoreboardError:
        return None  # the framework's handler refuses it


def _parse_number(text: str, least: int, most: int) -> int | None:
    if not _WHOLE.fullmatch(text):
        return None
    number = int(text)
    return number if least <= number <= most else None


def _respond(request: Request, page: Page, *, is_public: bool) -> HttpResponse:
    headers = [(b"etag", page.etag.encode()), _CACHE[is_public], _VARY]
    known = request.head.headers.get(b"if-none-match")
    if known is not None and etag_matches(known.decode("latin-1"), page.etag):
        return HttpResponse(304, [*headers, NOSNIFF])
    return HttpResponse(200, [*headers, _JSON, NOSNIFF], page.body)
