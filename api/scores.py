"""The score endpoints: parse, one call, shape the reply.

``update`` is the plain form of the update; in service api.direct answers in its place.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Final, cast

from litestar import Controller, Request, Response, get, post
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.params import JSONBody, PathParameter, QueryParameter

from api.authentication import authenticate, require_reader, require_updater
from api.direct import board_of, check_media
from api.reads import Page, Reads, is_known_to_client
from api.responses import problems, problems_of_a_read
from api.schemas import LeaderboardReply, StandingReply, UpdateReply, UpdateRequest
from api.updates import Updates
from scoreboard.auth import READ, UPDATE, UPDATE_ANY, Caller, Verifier
from scoreboard.errors import Invalid
from scoreboard.model import AROUND_MAX, ID_PATTERN, PAGE_MAX, SCORE_MAX, is_identifier
from scoreboard.settings import Settings

AnyRequest = Request[Any, Any, Any]
AnyConnection = ASGIConnection[Any, Any, Any, Any]

Board = Annotated[
    str | None,
    QueryParameter(name="board", description="Which board; the default one where left out."),
]
UserPath = Annotated[
    str, PathParameter(pattern=ID_PATTERN, description="A user, as the token's `sub` names it.")
]

BEARER: Final = "bearer"
"""The security scheme of the documents."""

_UPDATE: Final = (
    "The same `actionId` counts once, ever: repeat a request whose answer got lost, and the answer "
    "is the same, with `replayed: true`. Points come from the catalogue of actions by the kind in "
    "`kind:unique`; only callers with `update:score:any` may state them, and act for other users."
)
_LEADERBOARD: Final = (
    "Rows `offset + 1` to `offset + limit` with the total, all of one moment. Whoever reached a "
    "score first stays ahead. A board that is public needs no token."
)
_STANDING: Final = (
    "Rank, score and, with `around`, the neighbours: as many to each side, and more on one side "
    "where the other ends. A board that is public needs no token."
)
_VARY = "Accept-Encoding, Authorization"
_PUBLIC = "public, max-age=1, stale-while-revalidate=2"
_PRIVATE = "private, no-store"


@dataclass(frozen=True)
class Services:
    """What the handlers need; kept in the application's state as ``services``."""

    settings: Settings
    verifier: Verifier
    updates: Updates
    reads: Reads


def services_of(connection: AnyConnection) -> Services:
    """Give the services of the application that a request came to."""
    return cast("Services", connection.app.state["services"])


async def updaters_only(connection: AnyConnection, _: BaseRouteHandler) -> None:
    """Let updaters pass, before the body is parsed (a guard)."""
    headers = dict(connection.scope["headers"])
    caller = await authenticate(services_of(connection).verifier, headers)
    connection.state["caller"] = caller
    connection.state["trusted"] = require_updater(caller)
    check_media(headers.get(b"content-type"))


async def readers_only(connection: AnyConnection, _: BaseRouteHandler) -> None:
    """Let everyone read a public board, and readers the others (a guard)."""
    services = services_of(connection)
    board = services.reads.choose(board_of(connection.scope["query_string"]))
    facts = await services.reads.facts(board)
    connection.state["board"] = facts
    if not facts.is_public:
        require_reader(await authenticate(services.verifier, dict(connection.scope["headers"])))


class Scores(Controller):
    """Scores and rankings."""

    path = "/api/scores"
    tags = ("scores",)

    @post(
        "/update",
        status_code=200,
        guards=[updaters_only],
        operation_id="updateScore",
        summary="Count one action of a user",
        description=_UPDATE,
        security=[{BEARER: [UPDATE]}, {BEARER: [UPDATE_ANY]}],
        responses=problems(400, 401, 403, 404, 409, 413, 415, 422, 429, 503),
    )
    async def update(
        self, request: AnyRequest, data: JSONBody[UpdateRequest], board: Board = None
    ) -> Response[UpdateReply]:
        """Count one action of a user."""
        caller: Caller = request.state["caller"]
        receipt, quota = await services_of(request).updates.apply(
            caller,
            data,
            board,
            request.state["request_id"],
            trusted=request.state["trusted"],
        )
        headers = {"Cache-Control": "no-store"}
        if quota is not None:
            headers |= {name.decode(): value.decode() for name, value in quota.headers()}
        return Response(UpdateReply(True, receipt.score, receipt.replayed), headers=headers)

    @get(
        "/leaderboard",
        guards=[readers_only],
        operation_id="readLeaderboard",
        summary="Read a window of the ranking",
        description=_LEADERBOARD,
        security=[{}, {BEARER: [READ]}],
        responses=problems_of_a_read(400, 401, 403, 404, 422, 503),
    )
    async def leaderboard(
        self,
        request: AnyRequest,
        board: Board = None,
        limit: Annotated[int, QueryParameter(ge=1, le=PAGE_MAX, description="Rows wanted.")] = 10,
        offset: Annotated[
            int, QueryParameter(ge=0, le=SCORE_MAX, description="Rows to pass over.")
        ] = 0,
        names: Annotated[
            bool, QueryParameter(description="Add users' names, where they are known.")
        ] = False,
    ) -> Response[LeaderboardReply]:
        """Read a window of the ranking."""
        reads = services_of(request).reads
        page = await reads.leaderboard(reads.choose(board), limit=limit, offset=offset, names=names)
        return cast("Response[LeaderboardReply]", _answer(request, page))

    @get(
        "/users/{user_id:str}",
        guards=[readers_only],
        operation_id="readStanding",
        summary="Read one user's place",
        description=_STANDING,
        security=[{}, {BEARER: [READ]}],
        responses=problems_of_a_read(400, 401, 403, 404, 422, 503),
    )
    async def standing(
        self,
        request: AnyRequest,
        user_id: UserPath,
        board: Board = None,
        around: Annotated[
            int, QueryParameter(ge=0, le=AROUND_MAX, description="Neighbours to each side.")
        ] = 0,
    ) -> Response[StandingReply]:
        """Read one user's place."""
        if not is_identifier(user_id):
            raise Invalid("userId: 1 to 128 characters of A-Z a-z 0-9 . _ | : @ -")
        reads = services_of(request).reads
        page = await reads.standing(reads.choose(board), user_id, around=around)
        return cast("Response[StandingReply]", _answer(request, page))


def _answer(request: AnyRequest, page: Page) -> Response[bytes]:
    is_public = request.state["board"].is_public
    headers = {
        "ETag": page.etag,
        "Cache-Control": _PUBLIC if is_public else _PRIVATE,
        "Vary": _VARY,
    }
    if is_known_to_client(request.headers.get("if-none-match"), page.etag):
        return Response(b"", status_code=304, headers=headers, media_type="application/json")
    return Response(page.body, headers=headers, media_type="application/json")
