"""Boards for administrators: all of them, new ones, and changes."""

from typing import Annotated, Final, TypeVar, cast

from litestar import Controller, Response, get, patch, post
from litestar.params import JSONBody, PathParameter, QueryParameter
from msgspec import UNSET
from msgspec.structs import astuple, replace

from api.documents.admin_schemas import (
    AdminBoard,
    AdminBoardsReply,
    BoardChange,
    BoardLimits,
    NewBoard,
    NewBoardRules,
)
from api.documents.forms import AFTER_PATTERN
from api.documents.responses import admin_problems
from api.documents.schemas import LeaderboardReply, SeasonsReply
from api.endpoints.admin.acts import HEADERS, SECURITY
from api.endpoints.admin.sessions import (
    Session,
    actor_of,
    caller_of,
    find_board,
    require_administrator,
    sessions_of,
)
from api.endpoints.board_pages import describe_board
from api.endpoints.board_reader import Page
from api.endpoints.parameters import read_parameters
from api.endpoints.scores import AnyRequest, DecodedRequest, Season, get_services
from scoreboard.errors import (
    ActConflict,
    ForeignOrigin,
    OperatorMistake,
    Unavailable,
    UnknownBoard,
    UnknownUser,
)
from scoreboard.ledger.boards import select_boards_after
from scoreboard.model import BOARD_PATTERN, SCORE_MAX, SEASON_PATTERN, Board, Layout, Rules
from scoreboard.model import PAGE_MAX as ROWS_MAX
from scoreboard.recovery.board_changes import (
    LimitChange,
    change_board,
    create_board,
    make_rules,
    open_new_board,
)

PAGE_MAX: Final = 50
"""Maximum boards of a page; each costs a call to Redis."""

BoardPath = Annotated[str, PathParameter(pattern=BOARD_PATTERN, description="The board.")]
_NOT_HERE: Final = {ActConflict, ForeignOrigin, UnknownUser}
_CREATE: Final = (
    "Makes a board with fixed rules and opens it; every service serves it within two seconds. If "
    "it exists with the same rules and visibility, and the same limits and `seenSeconds` if they "
    "are given, it is opened if necessary, so the request can be repeated; otherwise the answer is "
    "409."
)


class AdminBoards(Controller):
    """Boards for administrators."""

    path = "/api/admin/boards"
    tags = ("administration",)
    guards = (require_administrator, read_parameters)
    request_class = DecodedRequest

    @get(
        "/",
        operation_id="listAllBoards",
        summary="List all boards",
        description="Returns boards by name, also private and archived ones.",
        security=SECURITY,
        response_description="A page of boards.",
        responses=admin_problems(400, 401, 403, 422, 429, 503,
                                 omitted={UnknownBoard, *_NOT_HERE}),
    )  # fmt: skip
    async def list_all(
        self,
        request: AnyRequest,
        limit: Annotated[
            int, QueryParameter(ge=1, le=PAGE_MAX, description="Number of boards.")
        ] = PAGE_MAX,
        after: Annotated[
            str,
            QueryParameter(
                pattern=AFTER_PATTERN,
                description="The name after which the page starts.",
            ),
        ] = "",
    ) -> Response[AdminBoardsReply]:
        """List all boards."""
        async with sessions_of(request).open() as session:
            found = await select_boards_after(session.connection, after=after, limit=limit + 1)
            boards = [await _describe(session, board) for board in found[:limit]]
        following = found[limit - 1].name if len(found) > limit else None
        return Response(AdminBoardsReply(tuple(boards), following), headers=HEADERS)

    @post(
        "/",
        status_code=200,
        operation_id="createBoard",
        summary="Make a board",
        description=_CREATE,
        security=SECURITY,
        response_description="The board is open.",
        responses=admin_problems(400, 401, 403, 409, 413, 415, 422, 429, 503,
                                 omitted={UnknownBoard, *_NOT_HERE}),
    )  # fmt: skip
    async def create(self, request: AnyRequest, data: JSONBody[NewBoard]) -> Response[AdminBoard]:
        """Make a board."""
        wanted = _board_of(data)
        actor = actor_of(caller_of(request))
        async with sessions_of(request).open(changes=True) as session:
            if not await create_board(session.connection, wanted, actor=actor):
                held = await find_board(session, wanted.name)
                if not _is_as_wanted(held, wanted, data):
                    raise OperatorMistake(f"Board {wanted.name} exists, and is another one")
            await open_new_board(session.store, session.connection, wanted.name, actor=actor)
            board = await _describe(session, await find_board(session, wanted.name))
        return Response(board, headers=HEADERS)

    @patch(
        "/{name:str}",
        operation_id="changeBoard",
        summary="Change a board",
        description="Makes a board public or private, archives it, or opens an archived one. "
        "Services apply it within a second. The request can be repeated.",
        security=SECURITY,
        response_description="The board after the change.",
        responses=admin_problems(400, 401, 403, 404, 409, 413, 415, 422, 429, 503,
                                 omitted=_NOT_HERE),
    )  # fmt: skip
    async def change(
        self, request: AnyRequest, name: BoardPath, data: JSONBody[BoardChange]
    ) -> Response[AdminBoard]:
        """Change a board."""
        async with sessions_of(request).open(changes=True) as session:
            await change_board(
                session.store,
                session.connection,
                (await find_board(session, name)).name,
                actor=actor_of(caller_of(request)),
                is_public=None if data.public is UNSET else data.public,
                state=None if data.state is UNSET else data.state,
                limits=None if data.limits is UNSET else LimitChange(*astuple(data.limits)),
            )
            board = await _describe(session, await find_board(session, name))
        return Response(board, headers=HEADERS)

    @get(
        "/{name:str}/seasons",
        operation_id="listSeasonsOfBoard",
        summary="List the seasons of any board",
        description="As `/api/scores/seasons`, also of private boards.",
        security=SECURITY,
        response_description="Seasons, latest first.",
        responses=admin_problems(400, 401, 403, 404, 422, 429, 503, omitted=_NOT_HERE),
    )
    async def seasons(
        self,
        request: AnyRequest,
        name: BoardPath,
        limit: Annotated[
            int, QueryParameter(ge=1, le=ROWS_MAX, description="Number of seasons.")
        ] = 20,
        before: Annotated[
            str | None,
            QueryParameter(pattern=SEASON_PATTERN, description="`next` of the page before."),
        ] = None,
    ) -> Response[SeasonsReply]:
        """List the seasons of a board."""
        async with sessions_of(request).open() as session:
            board = await find_board(session, name)
        page = await get_services(request).seasons.seasons(board.name, limit=limit, before=before)
        return _respond(page, SeasonsReply)

    @get(
        "/{name:str}/leaderboard",
        operation_id="readLeaderboardOfBoard",
        summary="Read a page of the ranking of any board",
        description="As `/api/scores/leaderboard`, also of private boards, and without names; "
        "`limit` is 100 by default.",
        security=SECURITY,
        response_description="A page of the ranking.",
        responses=admin_problems(
            400, 401, 403, 404, 422, 429, 503, omitted=_NOT_HERE, seasons=True
        ),
    )
    async def leaderboard(
        self,
        request: AnyRequest,
        name: BoardPath,
        *,
        season: Season = None,
        limit: Annotated[
            int, QueryParameter(ge=1, le=ROWS_MAX, description="Number of rows.")
        ] = ROWS_MAX,
        offset: Annotated[
            int, QueryParameter(ge=0, le=SCORE_MAX, description="Number of rows to skip.")
        ] = 0,
    ) -> Response[LeaderboardReply]:
        """Read a page of the ranking of a board, or of a season of it."""
        async with sessions_of(request).open() as session:
            board = await find_board(session, name)
        services = get_services(request)
        if season is None:
            page = await services.reads.leaderboard(
                board.name, limit=limit, offset=offset, names=False
            )
        else:
            page = await services.seasons.leaderboard(
                board.name, season, limit=limit, offset=offset, names=False
            )
        return _respond(page, LeaderboardReply)


_Reply = TypeVar("_Reply")


def _respond(page: Page, _: type[_Reply]) -> Response[_Reply]:
    """Return an encoded page as the response that the document describes."""
    return cast(
        "Response[_Reply]", Response(page.body, headers=HEADERS, media_type="application/json")
    )


def _board_of(data: NewBoard) -> Board:
    """Return a new board.

    Raises Invalid.
    """
    seen_s = Layout().seen_seconds if data.seen_seconds is UNSET else data.seen_seconds
    layout = Layout(seen_seconds=seen_s, rules=_rules_of(data.rules))
    board = Board(data.name, layout, data.public)
    if data.limits is UNSET:
        return board
    return replace(board, limits=LimitChange(*astuple(data.limits)).applied_to(board))


def _is_as_wanted(held: Board, wanted: Board, data: NewBoard) -> bool:
    """Return whether a board has the rules and the visibility, and what else was given."""
    return (
        (held.layout.rules, held.is_public) == (wanted.layout.rules, wanted.is_public)
        and (data.limits is UNSET or held.limits == wanted.limits)
        and (data.seen_seconds is UNSET or held.layout.seen_seconds == wanted.layout.seen_seconds)
    )


def _rules_of(rules: NewBoardRules) -> Rules:
    return make_rules(Rules(*astuple(rules)))


async def _describe(session: Session, board: Board) -> AdminBoard:
    """Return a board with its number of users, which is unknown while it is not loaded."""
    try:
        users = (await session.store.leaderboard(board.name, limit=0)).total
    except Unavailable:
        users = None
    plain = describe_board(board)
    return AdminBoard(
        *(plain.name, plain.public, plain.state, plain.rules, board.layout.partitions, users),
        limits=BoardLimits(*astuple(board.limits)),
        seen_seconds=board.layout.seen_seconds,
    )
