"""Corrections, voids and bans: previewed, performed once, listed and completed."""

from typing import Annotated, Final

from litestar import Controller, Response, get, post
from litestar.params import JSONBody, PathParameter, QueryParameter
from msgspec.structs import asdict

from api.documents.admin_schemas import (
    ActPlan,
    ActReply,
    ActRequest,
    ActRow,
    ActsReply,
    Place,
    PlacedRow,
    PreviewReply,
)
from api.documents.responses import admin_problems
from api.endpoints.admin.sessions import (
    Session,
    caller_of,
    find_board,
    require_administrator,
    sessions_of,
)
from api.endpoints.fast_reads import PRIVATE
from api.endpoints.parameters import read_parameters
from api.endpoints.scores import BEARER, AnyRequest, DecodedRequest
from scoreboard.errors import ActConflict, ForeignOrigin
from scoreboard.ledger.acts import ACT_ID_PATTERN, Act, ActFilter, ActState, select_act, select_acts
from scoreboard.model import BOARD_PATTERN, ID_PATTERN, Board, Row
from scoreboard.moderation.acts import Done
from scoreboard.moderation.plans import Undo
from scoreboard.moderation.preview import preview, require_in_bounds
from scoreboard.security.tokens import ADMIN

PAGE_MAX: Final = 100

BoardFilter = Annotated[str | None, QueryParameter(pattern=BOARD_PATTERN, description="The board.")]
UserFilter = Annotated[
    str | None, QueryParameter(name="userId", pattern=ID_PATTERN, description="The user.")
]

SECURITY: Final = [{BEARER: [ADMIN]}]
HEADERS: Final = {"Cache-Control": PRIVATE}

_PERFORM: Final = (
    "Performs an act, once for its `id`, and records it with its actor (`sub:` and the token's "
    "subject) and reason in the audit log. If there is no response or a 503, send the request "
    "again with the same `id`; another act with this id gets 409. The score changes at once, and "
    "viewers see it. `committed` is false if PostgreSQL has not confirmed it within 5 seconds."
)
_NOT_HERE: Final = {ForeignOrigin, ActConflict}
_WRITE: Final = (400, 401, 403, 404, 409, 413, 415, 422, 429, 503)
"""The statuses of a request with an act."""


class Acts(Controller):
    """Acts of administrators."""

    path = "/api/admin/acts"
    tags = ("administration",)
    guards = (require_administrator, read_parameters)
    request_class = DecodedRequest

    @post(
        "/preview",
        status_code=200,
        operation_id="previewAct",
        summary="Show what an act would do",
        description="Returns who would move where, as of now, and changes nothing.",
        security=SECURITY,
        response_description="What the act would do.",
        responses=admin_problems(*_WRITE, omitted=_NOT_HERE),
    )
    async def preview(self, request: AnyRequest, data: JSONBody[ActPlan]) -> Response[PreviewReply]:
        """Show what an act would do."""
        sessions = sessions_of(request)
        async with sessions.open(changes=True) as session:
            board = await _board_of(session, data)
            moderator = sessions.moderator(session, board, caller_of(request))
            plan = await moderator.plan(data.request)
            found = await preview(session.store, session.connection, board, plan)
        require_in_bounds(board, plan, found)
        reply = PreviewReply(
            board.name,
            plan.user_id,
            plan.kind,
            plan.delta,
            len(plan.actions),
            Place(found.before.score, found.before.rank),
            Place(found.after.score, found.after.rank),
            _rows(found.top_before),
            _rows(found.top_after),
        )
        return Response(reply, headers=HEADERS)

    @post(
        "/",
        status_code=200,
        operation_id="performAct",
        summary="Perform an act",
        description=_PERFORM,
        security=SECURITY,
        response_description="The act was applied, by this or an earlier request.",
        responses=admin_problems(*_WRITE, omitted={ForeignOrigin}),
    )
    async def perform(self, request: AnyRequest, data: JSONBody[ActRequest]) -> Response[ActReply]:
        """Perform an act."""
        sessions = sessions_of(request)
        async with sessions.open(changes=True) as session:
            board = await _board_of(session, data)
            moderator = sessions.moderator(session, board, caller_of(request))
            wanted = data.request
            done = await moderator.repeat(wanted, reason=data.reason, act_id=data.id)
            if done is None:
                plan = await moderator.plan(wanted)
                found = await preview(session.store, session.connection, board, plan)
                require_in_bounds(board, plan, found)  # else the act is recorded as refused
                done = await moderator.perform(wanted, plan, reason=data.reason, act_id=data.id)
            act = await select_act(session.connection, data.id)
        return _respond(act, await sessions.await_commit(board, act, done))

    @get(
        "/",
        operation_id="listActs",
        summary="List acts",
        description="Returns acts, latest first, that match every given parameter.",
        security=SECURITY,
        response_description="A page of acts.",
        responses=admin_problems(400, 401, 403, 404, 422, 429, 503, omitted=_NOT_HERE),
    )
    async def list_acts(
        self,
        request: AnyRequest,
        *,
        board: BoardFilter = None,
        user_id: UserFilter = None,
        act_state: Annotated[
            ActState | None, QueryParameter(name="state", description="The state.")
        ] = None,
        limit: Annotated[
            int, QueryParameter(ge=1, le=PAGE_MAX, description="Number of acts.")
        ] = 50,
        before: Annotated[
            str | None,
            QueryParameter(pattern=ACT_ID_PATTERN, description="`next` of the page before."),
        ] = None,
    ) -> Response[ActsReply]:
        """List acts."""
        async with sessions_of(request).open() as session:
            last = None if before is None else await select_act(session.connection, before)
            chosen = ActFilter(
                board=board,
                user_id=user_id,
                state=act_state,
                before=None if last is None else (last.at, last.id),
            )
            # A row more than asked for tells whether there is another page.
            found = await select_acts(session.connection, chosen, limit=limit + 1)
        following = found[limit - 1].id if len(found) > limit else None
        rows = tuple(ActRow(**asdict(act)) for act in found[:limit])
        return Response(ActsReply(rows, following), headers=HEADERS)

    @post(
        "/{act_id:str}/resume",
        status_code=200,
        operation_id="resumeAct",
        summary="Complete an act",
        description="Completes an act that was interrupted; an applied one is not changed.",
        security=SECURITY,
        response_description="The act is applied.",
        responses=admin_problems(400, 401, 403, 404, 409, 422, 429, 503, omitted=_NOT_HERE),
    )
    async def resume(
        self,
        request: AnyRequest,
        act_id: Annotated[str, PathParameter(description="The act.", pattern=ACT_ID_PATTERN)],
    ) -> Response[ActReply]:
        """Complete an act."""
        sessions = sessions_of(request)
        async with sessions.open(changes=True) as session:
            act = await select_act(session.connection, act_id)
            board = await find_board(session, act.board)
            done = await sessions.moderator(session, board, caller_of(request)).resume(act_id)
        return _respond(act, await sessions.await_commit(board, act, done))


async def _board_of(session: Session, plan: ActPlan) -> Board:
    """Return the board of an act; an undo has that of the act that it undoes."""
    wanted = plan.request
    if isinstance(wanted, Undo):
        return await find_board(
            session, (await select_act(session.connection, wanted.act_id)).board
        )
    return await find_board(session, str(plan.board))


def _rows(rows: tuple[Row, ...]) -> tuple[PlacedRow, ...]:
    return tuple(PlacedRow(row.rank, row.user_id, row.score) for row in rows)


def _respond(act: Act, done: Done) -> Response[ActReply]:
    reply = ActReply(
        act.id, act.board, act.user_id, act.kind, act.delta, done.score, done.is_committed
    )
    return Response(reply, headers=HEADERS)
