"""The boards and their rules: ``GET /api/boards`` and ``GET /api/boards/{name}``.

A caller without a token sees the public boards, one who may read every board sees all.
"""

from typing import Annotated, Final, TypeVar

from litestar import Controller, Response, get
from litestar.handlers import BaseRouteHandler
from litestar.params import PathParameter, QueryParameter

from api.documents.responses import UPDATE_ONLY, problems
from api.documents.schemas import BoardReply, BoardsReply
from api.endpoints.board_pages import PAGE_MAX, describe_board
from api.endpoints.fast_reads import PRIVATE, PUBLIC, VARY
from api.endpoints.parameters import read_parameters
from api.endpoints.scores import BEARER, AnyConnection, AnyRequest, get_services
from scoreboard.errors import ForeignOrigin, UnknownUser
from scoreboard.model import Board
from scoreboard.security.access import can_read
from scoreboard.security.tokens import READ

PATH: Final = "/api/boards"
_LIST: Final = (
    "Returns boards and their rules by name, at most `limit`. If there are more, `next` is the "
    "`after` of the next page. Without a token the list has the public boards; with the scope "
    "`read:leaderboard` it has all."
)
_ONE: Final = "Returns a board and its rules. Public boards need no token."
_NOT_HERE: Final = {*UPDATE_ONLY, ForeignOrigin, UnknownUser}


async def find_reader(connection: AnyConnection, _: BaseRouteHandler) -> None:
    """Check the token of a caller who sends one, and whether they may read every board (a guard).

    A token without the scope to read is as good as none.
    """
    authorization = dict(connection.scope["headers"]).get(b"authorization")
    caller = None
    if authorization is not None:
        caller = await get_services(connection).verifier.authenticate(authorization)
    connection.state["sees_all"] = can_read(caller, is_public=False)


async def require_board_access(connection: AnyConnection, _: BaseRouteHandler) -> None:
    """Find the board of the path and check that the caller may read it (a guard)."""
    name = connection.state["board_name"] = str(connection.path_params["name"])
    headers = dict(connection.scope["headers"])
    reads = get_services(connection).fast_reads
    connection.state["board"] = await reads.require_read_access(name, headers)


class BoardInformation(Controller):
    """Boards and their rules."""

    path = PATH
    tags = ("boards",)
    guards = (read_parameters,)

    @get(
        "/",
        guards=[find_reader],
        operation_id="listBoards",
        summary="List the boards",
        description=_LIST,
        security=[{}, {BEARER: [READ]}],
        response_description="A page of boards.",
        responses=problems(400, 401, 422, 429, 503, omitted=_NOT_HERE),
    )
    async def list_boards(
        self,
        request: AnyRequest,
        limit: Annotated[
            int, QueryParameter(ge=1, le=PAGE_MAX, description="Number of boards.")
        ] = PAGE_MAX,
        after: Annotated[
            str, QueryParameter(max_length=32, description="The name after which the page starts.")
        ] = "",
    ) -> Response[BoardsReply]:
        """List the boards."""
        sees_all: bool = request.state["sees_all"]
        pages = get_services(request).board_pages
        page = await pages.page(after=after, limit=limit, is_public=not sees_all)
        return _respond(page, is_public=not sees_all)

    @get(
        "/{name:str}",
        guards=[require_board_access],
        operation_id="readBoard",
        summary="Read the rules of a board",
        description=_ONE,
        security=[{}, {BEARER: [READ]}],
        response_description="The board.",
        responses=problems(400, 401, 403, 404, 429, 503, omitted=_NOT_HERE),
        sync_to_thread=False,
    )
    def read_board(
        self,
        request: AnyRequest,
        name: Annotated[  # noqa: ARG002 (the guard has found it)
            str, PathParameter(description="The board.")
        ],
    ) -> Response[BoardReply]:
        """Read the rules of a board."""
        board: Board = request.state["board"]
        return _respond(describe_board(board), is_public=board.is_public)


_Reply = TypeVar("_Reply", BoardReply, BoardsReply)


def _respond(reply: _Reply, *, is_public: bool) -> Response[_Reply]:
    headers = {"Cache-Control": PUBLIC if is_public else PRIVATE, "Vary": VARY}
    return Response(reply, headers=headers)
