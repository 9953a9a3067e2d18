"""The score endpoints: parse, one call, shape the reply.

``update`` is the reference implementation: api.endpoints.fast_update serves updates in its place.
``stream`` only describes the endpoint: api.endpoints.event_streams serves it.
"""

from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Final, cast
from urllib.parse import urlencode

from litestar import Controller, Request, Response, get, post
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.params import JSONBody, PathParameter, QueryParameter

from api.documents.responses import problems, problems_of_a_read
from api.documents.schemas import LeaderboardReply, StandingReply, UpdateReply, UpdateRequest
from api.edge.authentication import authenticate, require_reader, require_updater
from api.endpoints.board_reader import BoardReader, Page, etag_matches
from api.endpoints.fast_update import check_media_type
from api.endpoints.updates import UpdateService
from scoreboard.errors import Invalid, MethodNotAllowed
from scoreboard.http.query import parse_query
from scoreboard.model import AROUND_MAX, ID_PATTERN, PAGE_MAX, SCORE_MAX, is_identifier
from scoreboard.runtime.settings import Settings
from scoreboard.security.tokens import READ, UPDATE, UPDATE_ANY, Caller, Verifier, bearer_token

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
    "`kind:unique`, and a kind that it does not have is refused. Only callers with "
    "`update:score:any` may state them, and act for other users."
)
_LEADERBOARD: Final = (
    "Rows `offset + 1` to `offset + limit` with the total, of one moment within each partition of "
    "the board (by default it has one). Whoever reached a score first stays ahead; equals of "
    "different partitions have one order for every reader, not by time. A board that is public "
    "needs no token."
)
_STANDING: Final = (
    "Rank, score and, with `around`, the neighbours: as many to each side, and more on one side "
    "where the other ends. A board that is public needs no token."
)
_STREAM: Final = (
    "Server-sent events (`text/event-stream`) with the messages of the WebSocket `/ws/scoreboard`, "
    "for clients that cannot use one: `event` is a message's type, `data` the message as JSON "
    "(docs/asyncapi.yaml). The board comes first, then each change of its top 10, heartbeats in "
    "silence, and a `bye` before the stream ends. `Last-Event-ID` spares a client that comes back "
    "the board it has. A page of another origin gets 403 unless the operator listed it."
)
_VARY = "Accept-Encoding, Authorization"
_PUBLIC = "public, max-age=1, stale-while-revalidate=2"
_PRIVATE = "private, no-store"


@dataclass(frozen=True)
class Services:
    """What the handlers need; kept in the application's state as ``services``."""

    settings: Settings
    verifier: Verifier
    updates: UpdateService
    reads: BoardReader


def get_services(connection: AnyConnection) -> Services:
    """Give the services of the application that a request came to."""
    return cast("Services", connection.app.state["services"])


async def read_parameters(connection: AnyConnection, handler: BaseRouteHandler) -> None:
    """Read the query, which may name the handler's parameters, each once (a guard).

    The framework then gets it in the one form that has one reading.
    """
    values = parse_query(connection.scope["query_string"], _parameters_of(handler))
    connection.state["board_name"] = values.get("board")
    connection.scope["query_string"] = urlencode(values).encode()


@cache
def _parameters_of(handler: BaseRouteHandler) -> frozenset[str]:
    fields = handler.parsed_fn_signature.parameters.items()
    return frozenset(
        name for name, field in fields if isinstance(field.kwarg_definition, QueryParameter)
    )


async def updaters_only(connection: AnyConnection, _: BaseRouteHandler) -> None:
    """Let updaters pass, before the body is parsed (a guard)."""
    headers = dict(connection.scope["headers"])
    caller = await authenticate(get_services(connection).verifier, headers)
    connection.state["caller"] = caller
    connection.state["trusted"] = require_updater(caller)
    check_media_type(headers.get(b"content-type"))


async def readers_only(connection: AnyConnection, _: BaseRouteHandler) -> None:
    """Let everyone read a public board, and readers the others (a guard)."""
    services = get_services(connection)
    headers = dict(connection.scope["headers"])
    bearer_token(headers.get(b"authorization"))  # its form is checked on a public board, too
    board = services.reads.choose(connection.state["board_name"])
    facts = await services.reads.facts(board)
    connection.state["board"] = facts
    if not facts.is_public:
        require_reader(await authenticate(services.verifier, headers))


class Scores(Controller):
    """Scores and rankings."""

    path = "/api/scores"
    tags = ("scores",)
    guards = (read_parameters,)

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
        receipt, quota = await get_services(request).updates.apply(
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
        responses=problems_of_a_read(400, 401, 403, 404, 422, 429, 503),
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
        reads = get_services(request).reads
        page = await reads.leaderboard(reads.choose(board), limit=limit, offset=offset, names=names)
        return cast("Response[LeaderboardReply]", _answer(request, page))

    @get(
        "/users/{user_id:str}",
        guards=[readers_only],
        operation_id="readStanding",
        summary="Read one user's place",
        description=_STANDING,
        security=[{}, {BEARER: [READ]}],
        responses=problems_of_a_read(400, 401, 403, 404, 422, 429, 503),
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
        reads = get_services(request).reads
        page = await reads.standing(reads.choose(board), user_id, around=around)
        return cast("Response[StandingReply]", _answer(request, page))

    @get(
        "/stream",
        operation_id="streamLeaderboard",
        summary="Follow the top of the ranking",
        description=_STREAM,
        security=[{}, {BEARER: [READ]}],
        media_type="text/event-stream",
        responses=problems(400, 401, 403, 404, 429, 503),
        sync_to_thread=False,
    )
    def stream(self, board: Board = None) -> str:  # noqa: ARG002 (described)
        """Follow the top of the ranking. Described here; api.endpoints.event_streams serves it.

        What arrives here is HEAD, which the framework is asked as GET.
        """
        raise MethodNotAllowed("Use GET", allow="GET")


def _answer(request: AnyRequest, page: Page) -> Response[bytes]:
    is_public = request.state["board"].is_public
    headers = {
        "ETag": page.etag,
        "Cache-Control": _PUBLIC if is_public else _PRIVATE,
        "Vary": _VARY,
    }
    if etag_matches(request.headers.get("if-none-match"), page.etag):
        return Response(b"", status_code=304, headers=headers, media_type="application/json")
    return Response(page.body, headers=headers, media_type="application/json")
