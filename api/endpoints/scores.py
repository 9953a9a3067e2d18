"""The score endpoints of the framework.

``update``, ``leaderboard`` and ``standing`` are the reference implementations:
api.endpoints.fast_update and api.endpoints.fast_reads serve usual requests in their place.
``update_each`` and ``stream`` only describe endpoints, which api.endpoints.bulk_update and
api.endpoints.event_streams serve.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Final, cast

from litestar import Controller, Request, Response, get, post
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.params import JSONBody, PathParameter, QueryParameter

from api.documents.responses import ACTION_ONLY, UPDATE_ONLY, problems, read_problems
from api.documents.schemas import (
    BulkReply,
    BulkRequest,
    LeaderboardReply,
    SeasonsReply,
    StandingReply,
    UpdateReply,
    UpdateRequest,
)
from api.endpoints.board_pages import BoardPages
from api.endpoints.board_reader import BoardReader, Page, etag_matches
from api.endpoints.fast_reads import PRIVATE, PUBLIC, VARY, FastReads
from api.endpoints.fast_update import answer_boards, check_media_type, parse_update
from api.endpoints.history import HistoryReader
from api.endpoints.parameters import read_parameters
from api.endpoints.seasons import SeasonReader
from api.endpoints.update_replies import make_reply
from api.endpoints.updates import Outcome, UpdateService
from scoreboard.errors import ForeignOrigin, MethodNotAllowed, UnknownUser
from scoreboard.model import (
    AROUND_MAX,
    ID_PATTERN,
    PAGE_MAX,
    SCORE_MAX,
    SEASON_PATTERN,
)
from scoreboard.security.access import require_updater
from scoreboard.security.tokens import READ, UPDATE, UPDATE_ANY, Caller, Verifier

AnyRequest = Request[Any, Any, Any]
BODY: Final = "body"
"""The key of a request's state under which a guard keeps the decoded body."""

AnyConnection = ASGIConnection[Any, Any, Any, Any]

Board = Annotated[
    str | None,
    QueryParameter(name="board", description="The board; the default board if omitted."),
]
Season = Annotated[
    str | None,
    QueryParameter(
        name="season",
        pattern=SEASON_PATTERN,
        description="A season of the board: its final standings, or the ranking if it is current.",
    ),
]
UserPath = Annotated[
    str,
    PathParameter(
        pattern=ID_PATTERN, description="The user id, which is the `sub` of the user's token."
    ),
]

BEARER: Final = "bearer"
"""Name of the security scheme in the documents."""

_UPDATE: Final = (
    "An `actionId` is applied once: if a response is lost, repeat the request, and the response is "
    "the same, with `replayed: true`. The catalogue of actions sets the points by the kind in "
    "`kind:unique`; unknown kinds are refused. Only callers with the scope `update:score:any` may "
    "set `points`, unless the rules of the board ask every caller for them, and update other "
    "users. The catalogue can require a scope or the `proof` of a game server for a kind. On a "
    "board with seasons an action counts in the current one; with `season` only if that is the "
    "current one. An update with `season` names one board.\n\n"
    "With `boards`, up to 8 boards count the action, each once. A request that one of them refuses "
    "beforehand (no such board, a kind that earns no points) reaches none of them. If some boards "
    "fail later, the response is a problem, with `scores` of the boards that have counted the "
    "action and `problems` of the others: after a 429 or 5xx repeat the request, and the former "
    "answer as replays."
)
_BULK: Final = (
    "Applies up to 100 actions of any users, in one request of at most 16 KiB by default. The "
    "status is 200 also if actions are refused: `results` has an outcome for each. Each action "
    "counts once and by itself, and an action that is repeated in one request is a replay. Send "
    "those with `retryAfter`, or all if there is no response, again with the same `actionId`. The "
    "scope is `update:score:any`. Each action counts for the limit of updates."
)
_LEADERBOARD: Final = (
    "Returns rows `offset + 1` to `offset + limit` and the number of users. On a board of several "
    "partitions (the default is one), each partition is read at one moment of its own. Users with "
    "equal scores are ordered by the time they reached the score; those of different partitions "
    "have a fixed order. Public boards need no token."
)
_SEASONS: Final = (
    "Returns the seasons of a board, latest first; seasons without any action may be missing. "
    "The standings of a season are final about a second after its end; `winners` are the first "
    "three. `next` is `before` of the next page. A board without seasons has an empty list. The "
    "standings themselves are those of the other reads with `season`; they change only by a "
    "revision, `revisedAt`."
)
_STANDING: Final = (
    "Returns rank, score and, with `around`, that many neighbours on each side (near the start or "
    "the end of the ranking more on the other side). Public boards need no token."
)
_STREAM: Final = (
    "Sends the messages of the WebSocket `/ws/scoreboard` as server-sent events "
    "(`text/event-stream`), for clients that cannot use WebSocket: `event` is the message type, "
    "`data` the message as JSON (docs/asyncapi.yaml). The stream starts with the board, continues "
    "with each change of its top 10 and with heartbeats, and ends with a `bye`. With "
    "`Last-Event-ID`, a client that has the current board gets a heartbeat first. Pages of other "
    "origins get 403 unless the operator lists the origin."
)


@dataclass(frozen=True)
class Services:
    """Dependencies of the handlers, in the application's state as ``services``."""

    verifier: Verifier
    updates: UpdateService
    reads: BoardReader
    fast_reads: FastReads
    board_pages: BoardPages
    history: HistoryReader
    seasons: SeasonReader


def get_services(connection: AnyConnection) -> Services:
    """Return the services of a request's application."""
    return cast("Services", connection.app.state["services"])


async def require_update_access(connection: AnyConnection, _: BaseRouteHandler) -> None:
    """Authenticate an update before its body is parsed (a guard)."""
    headers = dict(connection.scope["headers"])
    verifier = get_services(connection).verifier
    caller = await verifier.authenticate(headers.get(b"authorization"))
    connection.state["caller"] = caller
    connection.state["update"] = None  # not parsed yet
    connection.state["trusted"] = require_updater(caller)
    check_media_type(headers.get(b"content-type"))
    connection.state[BODY] = parse_update(await cast("AnyRequest", connection).body())


async def require_read_access(connection: AnyConnection, _: BaseRouteHandler) -> None:
    """Check that the caller may read the board (a guard)."""
    headers = dict(connection.scope["headers"])
    connection.state["board"] = await get_services(connection).fast_reads.require_read_access(
        connection.state["board_name"], headers
    )


class DecodedRequest(Request[Any, Any, Any]):
    """A request whose body a guard has decoded: the framework's decoder converts values."""

    async def json(self) -> object:
        """Return the decoded body."""
        return self.state[BODY]


class Scores(Controller):
    """Scores and rankings."""

    request_class = DecodedRequest
    path = "/api/scores"
    tags = ("scores",)
    guards = (read_parameters,)

    @post(
        "/update",
        status_code=200,
        guards=[require_update_access],
        operation_id="updateScore",
        summary="Apply one action of a user",
        description=_UPDATE,
        security=[{BEARER: [UPDATE]}, {BEARER: [UPDATE_ANY]}],
        response_description="The action was applied, by this or an earlier request.",
        responses=problems(
            *(400, 401, 403, 404, 409, 413, 415, 422, 429, 503),
            omitted={ForeignOrigin, UnknownUser},
        ),
    )
    async def update(
        self, request: AnyRequest, data: JSONBody[UpdateRequest], board: Board = None
    ) -> Response[UpdateReply]:
        """Apply one action of a user."""
        caller: Caller = request.state["caller"]
        request.state["update"] = data
        result, quota = await get_services(request).updates.apply(
            caller,
            data,
            board,
            request.state["request_id"],
            trusted=request.state["trusted"],
        )
        if isinstance(result, Outcome):
            request_id = request.state["request_id"]
            answer = answer_boards(data, result, request_id, request.scope["state"], quota)
            fields = {name.decode(): value.decode() for name, value in answer.headers}
            return cast(
                "Response[UpdateReply]",
                Response(answer.body, status_code=answer.status, headers=fields),
            )
        receipt = request.state["receipt"] = result
        headers = {"Cache-Control": "no-store"}
        if quota is not None:
            headers |= {name.decode(): value.decode() for name, value in quota.headers()}
        return Response(make_reply(receipt), headers=headers)

    @post(
        "/updates",
        status_code=200,
        operation_id="updateScores",
        summary="Apply many actions",
        description=_BULK,
        security=[{BEARER: [UPDATE_ANY]}],
        response_description="What happened to each action.",
        responses=problems(
            *(400, 401, 403, 413, 415, 422, 429, 503),
            omitted={ForeignOrigin, *ACTION_ONLY},
        ),
        sync_to_thread=False,
    )
    def update_each(self, data: JSONBody[BulkRequest]) -> Response[BulkReply]:  # noqa: ARG002
        """Apply many actions. Described here; api.endpoints.bulk_update serves it."""
        raise MethodNotAllowed("Use POST", allow="POST")

    @get(
        "/leaderboard",
        guards=[require_read_access],
        operation_id="readLeaderboard",
        summary="Read a page of the ranking",
        description=_LEADERBOARD,
        security=[{}, {BEARER: [READ]}],
        response_description="A page of the ranking.",
        responses=read_problems(
            *(400, 401, 403, 404, 422, 429, 503),
            omitted={ForeignOrigin, UnknownUser},
            seasons=True,
        ),
    )
    async def leaderboard(  # noqa: PLR0917 (the parameters of the request)
        self,
        request: AnyRequest,
        board: Board = None,  # noqa: ARG002 (the guard has found it)
        limit: Annotated[
            int, QueryParameter(ge=1, le=PAGE_MAX, description="Number of rows.")
        ] = 10,
        offset: Annotated[
            int, QueryParameter(ge=0, le=SCORE_MAX, description="Number of rows to skip.")
        ] = 0,
        names: Annotated[
            bool, QueryParameter(description="Include users' names and metadata, if known.")
        ] = False,
        season: Season = None,
    ) -> Response[LeaderboardReply]:
        """Read a page of the ranking."""
        services = get_services(request)
        if season is not None:
            name = board_of(request)
            page = await services.seasons.leaderboard(
                name, season, limit=limit, offset=offset, names=names
            )
            return cast("Response[LeaderboardReply]", respond_page(request, page))
        page = await services.reads.leaderboard(
            board_of(request), limit=limit, offset=offset, names=names
        )
        return cast("Response[LeaderboardReply]", respond_page(request, page))

    @get(
        "/users/{user_id:str}",
        guards=[require_read_access],
        operation_id="readStanding",
        summary="Read the standing of a user",
        description=_STANDING,
        security=[{}, {BEARER: [READ]}],
        response_description="The user's rank and score.",
        responses=read_problems(
            *(400, 401, 403, 404, 422, 429, 503), omitted={ForeignOrigin}, seasons=True
        ),
    )
    async def standing(
        self,
        request: AnyRequest,
        user_id: UserPath,
        board: Board = None,  # noqa: ARG002 (the guard has found it)
        around: Annotated[
            int,
            QueryParameter(ge=0, le=AROUND_MAX, description="Number of neighbours on each side."),
        ] = 0,
        season: Season = None,
    ) -> Response[StandingReply]:
        """Read the standing of a user."""
        services = get_services(request)
        if season is not None:
            name = board_of(request)
            page = await services.seasons.standing(name, season, user_id, around=around)
            return cast("Response[StandingReply]", respond_page(request, page))
        page = await services.reads.standing(board_of(request), user_id, around=around)
        return cast("Response[StandingReply]", respond_page(request, page))

    @get(
        "/seasons",
        guards=[require_read_access],
        operation_id="readSeasons",
        summary="List the seasons of a board",
        description=_SEASONS,
        security=[{}, {BEARER: [READ]}],
        response_description="Seasons, latest first.",
        responses=read_problems(
            *(400, 401, 403, 404, 422, 429, 503),
            omitted={ForeignOrigin, UnknownUser},
        ),
    )
    async def seasons(
        self,
        request: AnyRequest,
        board: Board = None,  # noqa: ARG002 (the guard has found it)
        limit: Annotated[
            int, QueryParameter(ge=1, le=PAGE_MAX, description="Number of seasons.")
        ] = 20,
        before: Annotated[
            str | None,
            QueryParameter(pattern=SEASON_PATTERN, description="`next` of the page before."),
        ] = None,
    ) -> Response[SeasonsReply]:
        """List the seasons of a board."""
        page = await get_services(request).seasons.seasons(
            board_of(request), limit=limit, before=before
        )
        return cast("Response[SeasonsReply]", respond_page(request, page))

    @get(
        "/stream",
        operation_id="streamLeaderboard",
        summary="Stream the top of the ranking",
        description=_STREAM,
        security=[{}, {BEARER: [READ]}],
        media_type="text/event-stream",
        response_description="The event stream.",
        responses=problems(*(400, 401, 403, 404, 429, 503), omitted={*UPDATE_ONLY, UnknownUser}),
        sync_to_thread=False,
    )
    def stream(self, board: Board = None) -> str:  # noqa: ARG002 (for the documents)
        """Stream the top of the ranking. Described here; api.endpoints.event_streams serves it.

        Only HEAD requests arrive here, because the framework gets them as GET.
        """
        raise MethodNotAllowed("Use GET", allow="GET")


def board_of(request: AnyRequest) -> str:
    """Return the name of the board that a guard has found."""
    return cast("str", request.state["board"].name)


def respond_page(
    request: AnyRequest, page: Page, *, is_public: bool | None = None
) -> Response[bytes]:
    """Return a page with the headers of a read; ``is_public`` is by default that of the board."""
    if is_public is None:
        is_public = request.state["board"].is_public
    headers = {
        "ETag": page.etag,
        "Cache-Control": PUBLIC if is_public else PRIVATE,
        "Vary": VARY,
    }
    if etag_matches(request.headers.get("if-none-match"), page.etag):
        return Response(b"", status_code=304, headers=headers, media_type="application/json")
    return Response(page.body, headers=headers, media_type="application/json")
