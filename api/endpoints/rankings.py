"""The endpoints that read standings and ranks, in the framework.

``own_standing`` and ``standings`` are the reference implementations of api.endpoints.fast_reads,
which serves usual requests in their place.
"""

from typing import Annotated, Any, Final, cast

from litestar import Controller, Response, get
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.params import QueryParameter

from api.documents.responses import read_problems
from api.documents.schemas import (
    CutoffReply,
    HistoryReply,
    ScoreRankReply,
    StandingReply,
    StandingsReply,
)
from api.endpoints.fast_reads import PRIVATE, VARY, parse_user_ids
from api.endpoints.parameters import read_parameters
from api.endpoints.scores import (
    BEARER,
    AnyRequest,
    Board,
    Season,
    UserPath,
    board_of,
    get_services,
    require_read_access,
    respond_page,
)
from scoreboard.errors import ForeignOrigin, UnknownUser
from scoreboard.model import AROUND_MAX, PAGE_MAX, SCORE_MAX
from scoreboard.security.access import require_history
from scoreboard.security.tokens import READ, Caller

_STANDINGS: Final = (
    "Returns rank and score of up to 100 users, best first, for example of friends. `place` is the "
    "rank among them. `ids` is a list that is separated by commas, which no id contains; it may "
    "also be repeated, as in `ids=a&ids=b`. Users without a score are in `notFound`. A request "
    "line is at most 4,096 bytes long by default; ask for long lists in several requests."
)
_OWN: Final = (
    "Returns the standing of the caller, `sub` of the token, as `/api/scores/users/{userId}` "
    "does. It needs a token also on a public board."
)
_RANK: Final = (
    "Returns the rank that a user who reached `score` now would get. A new arrival ranks last "
    "among equals. On a board of several partitions (the default is one) equals of other "
    "partitions may rank below it, so the rank can be better, and not worse. With `season` it is "
    "the rank in the final standings."
)
_CUTOFF: Final = (
    "Returns the score of the user at a rank, and the score with which another user takes that "
    "rank now. If the board has fewer users, `score` is omitted and any score suffices. On a board "
    "of several partitions `rank` is at most 10,000. With `season` both are those of the final "
    "standings."
)
_HISTORY: Final = (
    "Returns the counted actions of a user, latest first, from PostgreSQL, which has an action "
    "about 0.1 s after it was applied. Players may read their own history; that of others needs "
    "`update:score:any` as well. `before` is `next` of the page before. A user without counted "
    "actions has an empty history; one who is banned still has its own."
)
_READ: Final = (400, 401, 403, 404, 422, 429, 503)


async def require_own_access(
    connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler
) -> None:
    """Check that the caller may read its own standing (a guard)."""
    board, caller = await get_services(connection).fast_reads.require_own_access(
        connection.state["board_name"], dict(connection.scope["headers"])
    )
    connection.state["board"], connection.state["caller"] = board, caller


class Rankings(Controller):
    """Standings and ranks."""

    path = "/api/scores"
    tags = ("scores",)
    guards = (read_parameters,)

    @get(
        "/users",
        guards=[require_read_access],
        operation_id="readStandings",
        summary="Read the standings of some users",
        description=_STANDINGS,
        security=[{}, {BEARER: [READ]}],
        response_description="Their ranks and scores, best first.",
        responses=read_problems(*_READ, omitted={ForeignOrigin, UnknownUser}, seasons=True),
    )
    async def standings(
        self,
        request: AnyRequest,
        ids: Annotated[str, QueryParameter(description="The users.")],
        board: Board = None,  # noqa: ARG002 (the guard has found it)
        names: Annotated[
            bool, QueryParameter(description="Include users' names and metadata, if known.")
        ] = False,
        season: Season = None,
    ) -> Response[StandingsReply]:
        """Read the standings of some users."""
        services, board_name, users = get_services(request), board_of(request), parse_user_ids(ids)
        if season is not None:
            page = await services.seasons.standings(board_name, season, users, names=names)
        else:
            page = await services.reads.standings(board_name, users, names=names)
        return cast("Response[StandingsReply]", respond_page(request, page))

    @get(
        "/me",
        guards=[require_own_access],
        operation_id="readOwnStanding",
        summary="Read the caller's standing",
        description=_OWN,
        security=[{BEARER: [READ]}],
        response_description="The caller's rank and score.",
        responses=read_problems(*_READ, omitted={ForeignOrigin}, seasons=True),
    )
    async def own_standing(
        self,
        request: AnyRequest,
        board: Board = None,  # noqa: ARG002 (the guard has found it)
        around: Annotated[
            int,
            QueryParameter(ge=0, le=AROUND_MAX, description="Number of neighbours on each side."),
        ] = 0,
        season: Season = None,
    ) -> Response[StandingReply]:
        """Read the caller's standing."""
        services, board_name = get_services(request), board_of(request)
        user_id = cast("Caller", request.state["caller"]).subject
        if season is not None:
            page = await services.seasons.standing(board_name, season, user_id, around=around)
        else:
            page = await services.reads.standing(board_name, user_id, around=around)
        return cast("Response[StandingReply]", respond_page(request, page, is_public=False))

    @get(
        "/rank",
        guards=[require_read_access],
        operation_id="readRankOfScore",
        summary="Read the rank that a score would get",
        description=_RANK,
        security=[{}, {BEARER: [READ]}],
        response_description="The rank, and the number of equals.",
        responses=read_problems(*_READ, omitted={ForeignOrigin, UnknownUser}, seasons=True),
    )
    async def rank(
        self,
        request: AnyRequest,
        score: Annotated[int, QueryParameter(ge=0, le=SCORE_MAX, description="The score.")],
        board: Board = None,  # noqa: ARG002 (the guard has found it)
        season: Season = None,
    ) -> Response[ScoreRankReply]:
        """Read the rank that a score would get."""
        services, board_name = get_services(request), board_of(request)
        if season is not None:
            page = await services.seasons.rank_of_score(board_name, season, score)
        else:
            page = await services.reads.rank_of_score(board_name, score)
        return cast("Response[ScoreRankReply]", respond_page(request, page))

    @get(
        "/cutoff",
        guards=[require_read_access],
        operation_id="readCutoff",
        summary="Read the score that a rank takes",
        description=_CUTOFF,
        security=[{}, {BEARER: [READ]}],
        response_description="The score at the rank, and the one that takes it.",
        responses=read_problems(*_READ, omitted={ForeignOrigin, UnknownUser}, seasons=True),
    )
    async def cutoff(
        self,
        request: AnyRequest,
        rank: Annotated[int, QueryParameter(ge=1, le=SCORE_MAX, description="The rank.")],
        board: Board = None,  # noqa: ARG002 (the guard has found it)
        season: Season = None,
    ) -> Response[CutoffReply]:
        """Read the score that a rank takes."""
        services, board_name = get_services(request), board_of(request)
        if season is not None:
            page = await services.seasons.cutoff(board_name, season, rank)
        else:
            page = await services.reads.cutoff(board_name, rank)
        return cast("Response[CutoffReply]", respond_page(request, page))

    @get(
        "/users/{user_id:str}/history",
        guards=[require_own_access],
        operation_id="readHistory",
        summary="Read the counted actions of a user",
        description=_HISTORY,
        security=[{BEARER: [READ]}],
        response_description="Counted actions, latest first.",
        responses=read_problems(*_READ, omitted={ForeignOrigin, UnknownUser}),
    )
    async def history(
        self,
        request: AnyRequest,
        user_id: UserPath,
        board: Board = None,  # noqa: ARG002 (the guard has found it)
        limit: Annotated[
            int, QueryParameter(ge=1, le=PAGE_MAX, description="Number of actions.")
        ] = 20,
        before: Annotated[
            str | None, QueryParameter(description="`next` of the page before.")
        ] = None,
    ) -> Response[HistoryReply]:
        """Read the counted actions of a user."""
        require_history(request.state["caller"], user_id)
        body = await get_services(request).history.read(
            board_of(request), user_id, limit=limit, before=before
        )
        headers = {"Cache-Control": PRIVATE, "Vary": VARY}
        return cast(
            "Response[HistoryReply]",
            Response(body, headers=headers, media_type="application/json"),
        )
