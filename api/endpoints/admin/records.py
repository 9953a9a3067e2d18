"""What administrators look up: users, the audit log, and what waits for a decision."""

import asyncio
from datetime import datetime
from typing import Annotated, Final

from litestar import Controller, Response, get, post
from litestar.params import JSONBody, PathParameter, QueryParameter
from msgspec.structs import replace

from api.documents.admin_schemas import (
    AuditReply,
    AuditReplyRow,
    BoardHealth,
    FoundUser,
    HeldReply,
    HeldRow,
    HeldVoid,
    StatusReply,
    UserBoard,
    UserReply,
    UserSeason,
    UsersReply,
)
from api.documents.forms import PRINTABLE
from api.documents.responses import admin_problems
from api.documents.schemas import HistoryReply
from api.endpoints.admin.acts import HEADERS, PAGE_MAX, SECURITY, BoardFilter, UserFilter
from api.endpoints.admin.processes import processes_of
from api.endpoints.admin.sessions import (
    AdminSessions,
    Session,
    actor_of,
    caller_of,
    find_board,
    require_administrator,
    sessions_of,
)
from api.endpoints.parameters import read_parameters
from api.endpoints.scores import AnyRequest, DecodedRequest, UserPath, get_services
from scoreboard.errors import (
    ActConflict,
    ForeignOrigin,
    Invalid,
    NotFound,
    ScoreboardError,
    Uninitialised,
    UnknownBoard,
    UnknownUser,
)
from scoreboard.events import BIGINT_MAX
from scoreboard.ledger.acts import ActFilter, select_acts
from scoreboard.ledger.audit import AuditFilter, select_audit
from scoreboard.ledger.boards import select_boards
from scoreboard.ledger.dead_letters import count_dead_letters
from scoreboard.ledger.held import HeldAction, HeldFilter, HeldState, select_held
from scoreboard.ledger.users import (
    search_users,
    select_public_profiles,
    select_user_boards,
    select_user_seasons,
)
from scoreboard.model import BOARD_PATTERN, Board, LimitKind, Partition

FOUND_MAX: Final = 20
"""Maximum users of a search."""

BOARDS_MAX: Final = 100
"""Maximum boards of a user or of the status."""

SEASONS_MAX: Final = 100
"""Maximum ended seasons of a user."""

PENDING_MAX: Final = 1000
"""Pending acts and held actions are counted up to this number."""

_NOT_HERE: Final = {ForeignOrigin, UnknownBoard, UnknownUser}
_STATUSES: Final = (400, 401, 403, 422, 429, 503)


class Records(Controller):
    """Users, the audit log and the status."""

    path = "/api/admin"
    tags = ("administration",)
    guards = (require_administrator, read_parameters)
    request_class = DecodedRequest

    @get(
        "/users",
        operation_id="searchUsers",
        summary="Search users",
        description="Returns up to 20 users whose id is `query`, or whose id or name begins so.",
        security=SECURITY,
        response_description="The users.",
        responses=admin_problems(*_STATUSES, omitted=_NOT_HERE),
    )
    async def search(
        self,
        request: AnyRequest,
        wanted: Annotated[
            str,
            QueryParameter(
                name="query",
                pattern=PRINTABLE,
                min_length=2,
                max_length=128,
                description="What to look for.",
            ),
        ],
    ) -> Response[UsersReply]:
        """Search users."""
        async with sessions_of(request).open() as session:
            found = await search_users(session.connection, wanted, limit=FOUND_MAX)
        users = tuple(FoundUser(user_id, name) for user_id, name in found)
        return Response(UsersReply(users), headers=HEADERS)

    @get(
        "/users/{user_id:str}",
        operation_id="readUser",
        summary="Read a user",
        description="Returns the boards on which the user has a score or is banned, and its scores "
        "and ranks in ended seasons, at most 100 of each.",
        security=SECURITY,
        response_description="The user.",
        responses=admin_problems(404, *_STATUSES, omitted={ForeignOrigin, UnknownBoard}),
    )
    async def user(self, request: AnyRequest, user_id: UserPath) -> Response[UserReply]:
        """Read a user."""
        async with sessions_of(request).open() as session:
            found = await select_user_boards(session.connection, user_id, limit=BOARDS_MAX)
            profiles = await select_public_profiles(session.connection, [user_id])
            ended = await select_user_seasons(session.connection, user_id, limit=SEASONS_MAX)
            boards = [
                await _place(session, user_id, one.board, one.score, one.banned_by) for one in found
            ]
        profile = profiles.get(user_id)
        if not boards and not ended and profile is None:
            raise UnknownUser(f"User {user_id} has no score and no name")
        seasons = tuple(UserSeason(one.board, one.season, one.score, one.rank) for one in ended)
        name = profile.name if profile else None
        reply = UserReply(user_id, name, tuple(boards), seasons)
        return Response(reply, headers=HEADERS)

    @get(
        "/users/{user_id:str}/history",
        operation_id="readHistoryOfUser",
        summary="Read the counted actions of any user",
        description="As `/api/scores/users/{userId}/history`, for any user.",
        security=SECURITY,
        response_description="A page of the history.",
        responses=admin_problems(404, *_STATUSES, omitted={ForeignOrigin, UnknownUser}),
    )
    async def history(
        self,
        request: AnyRequest,
        user_id: UserPath,
        board: Annotated[str, QueryParameter(pattern=BOARD_PATTERN, description="The board.")],
        limit: Annotated[
            int, QueryParameter(ge=1, le=PAGE_MAX, description="Number of actions.")
        ] = 100,
        before: Annotated[
            str | None, QueryParameter(description="`next` of the page before.")
        ] = None,
    ) -> Response[HistoryReply]:
        """Read the counted actions of a user."""
        async with sessions_of(request).open() as session:
            found = await find_board(session, board)
        body = await get_services(request).history.read(
            found.name, user_id, limit=limit, before=before
        )
        return Response(body, headers=HEADERS, media_type="application/json")  # type: ignore[return-value]

    @get(
        "/audit",
        operation_id="listAudit",
        summary="Read the audit log",
        description="Returns rows, latest first, that match every given parameter.",
        security=SECURITY,
        response_description="A page of the audit log.",
        responses=admin_problems(*_STATUSES, omitted=_NOT_HERE),
    )
    async def audit(
        self,
        request: AnyRequest,
        *,
        actor: Annotated[
            str | None,
            QueryParameter(pattern=PRINTABLE, max_length=200, description="Who made the change."),
        ] = None,
        action: Annotated[
            str | None,
            QueryParameter(
                pattern=PRINTABLE, max_length=200, description="The change, or its first word."
            ),
        ] = None,
        board: BoardFilter = None,
        user_id: UserFilter = None,
        limit: Annotated[
            int, QueryParameter(ge=1, le=PAGE_MAX, description="Number of rows.")
        ] = 50,
        before: Annotated[
            int | None,
            QueryParameter(ge=1, le=BIGINT_MAX, description="Only rows with a lower number."),
        ] = None,
    ) -> Response[AuditReply]:
        """Read the audit log."""
        chosen = AuditFilter(
            actor=actor,
            action=action,
            board=board,
            user=user_id,
            last=None if before is None else before - 1,
        )
        rows: list[AuditReplyRow] = []
        async with sessions_of(request).open() as session:
            async for page in select_audit(session.connection, chosen, limit=limit + 1):
                rows += [
                    AuditReplyRow(row.seq, row.at, row.actor, row.action, row.board, row.detail)
                    for row in page
                ]
        following = rows[limit - 1].number if len(rows) > limit else None
        return Response(AuditReply(tuple(rows[:limit]), following), headers=HEADERS)

    @get(
        "/held",
        operation_id="listHeld",
        summary="List held actions",
        description="Returns actions that exceeded a limit of their board, oldest first.",
        security=SECURITY,
        response_description="The held actions.",
        responses=admin_problems(*_STATUSES, omitted=_NOT_HERE),
    )
    async def list_held(
        self,
        request: AnyRequest,
        *,
        board: BoardFilter = None,
        user_id: UserFilter = None,
        held_state: Annotated[
            HeldState | None, QueryParameter(name="state", description="The state.")
        ] = None,
        exceeded: Annotated[
            LimitKind | None, QueryParameter(description="The limit that they exceeded.")
        ] = None,
        since: Annotated[
            datetime | None,
            QueryParameter(description="Only actions since then; RFC 3339, with a time zone."),
        ] = None,
        limit: Annotated[
            int, QueryParameter(ge=1, le=PAGE_MAX, description="Number of actions.")
        ] = 50,
        after: Annotated[
            int | None,
            QueryParameter(ge=1, le=BIGINT_MAX, description="`next` of the page before."),
        ] = None,
    ) -> Response[HeldReply]:
        """List held actions."""
        if since is not None and since.tzinfo is None:
            raise Invalid("since needs a time zone, such as Z")
        chosen = HeldFilter(
            board=board,
            user_id=user_id,
            state=held_state,
            limit_kind=exceeded,
            since=since,
            after=after,
        )
        async with sessions_of(request).open() as session:
            # A row more than asked for tells whether there is another page.
            found = await select_held(session.connection, chosen, limit=limit + 1)
        following = found[limit - 1].id if len(found) > limit else None
        rows = tuple(_held_row(one) for one in found[:limit])
        return Response(HeldReply(rows, following), headers=HEADERS)

    @post(
        "/held/{held_id:str}/void",
        status_code=200,
        operation_id="voidHeld",
        summary="Void a held action",
        description="The action never counts; this cannot be undone. If there is no response, send "
        "the request again: one by the same administrator with the same reason gets the same "
        "answer, and another one 409.",
        security=SECURITY,
        response_description="The action is voided.",
        responses=admin_problems(
            404, 409, 413, 415, *_STATUSES, omitted={ActConflict, ForeignOrigin}
        ),
    )
    async def void_held(
        self,
        request: AnyRequest,
        held_id: Annotated[int, PathParameter(ge=1, le=BIGINT_MAX, description="The action.")],
        data: JSONBody[HeldVoid],
    ) -> Response[HeldRow]:
        """Void a held action."""
        sessions = sessions_of(request)
        chosen = HeldFilter(ids=(held_id,))
        async with sessions.open(changes=True) as session:
            found = await select_held(session.connection, chosen, limit=1)
            if not found:
                raise NotFound(f"There is no held action {held_id}")
            caller = caller_of(request)
            if (found[0].voided_by, found[0].voided_reason) == (actor_of(caller), data.reason):
                return Response(_held_row(found[0]), headers=HEADERS)
            board = await find_board(session, found[0].board)
            moderator = sessions.moderator(session, board, caller)
            await moderator.void_held(held_id, reason=data.reason)
            [after] = await select_held(session.connection, chosen, limit=1)
        return Response(_held_row(after), headers=HEADERS)

    @get(
        "/status",
        operation_id="readStatus",
        summary="Read what waits for PostgreSQL or a decision",
        description="Returns the default boards and those with uncommitted actions, at most 100, "
        "the number of dead letters, that of pending acts (up to 1000), and the viewers and "
        "refusals of each process that this one can reach.",
        security=SECURITY,
        response_description="The status.",
        responses=admin_problems(*_STATUSES, omitted=_NOT_HERE),
    )
    async def status(self, request: AnyRequest) -> Response[StatusReply]:
        """Read what waits for PostgreSQL or a decision."""
        sessions = sessions_of(request)
        reply, processes = await asyncio.gather(
            self._read_stores(sessions), processes_of(request).read()
        )
        return Response(replace(reply, processes=processes), headers=HEADERS)

    async def _read_stores(self, sessions: AdminSessions) -> StatusReply:
        async with sessions.open() as session:
            boards = await select_boards(session.connection)
            health = await _examine(session, boards, sessions.settings.boards)
            dead = await count_dead_letters(session.connection)
            pending = await select_acts(
                session.connection, ActFilter(state="pending"), limit=PENDING_MAX
            )
            held = await select_held(
                session.connection, HeldFilter(state="held"), limit=PENDING_MAX
            )
        return StatusReply(tuple(health), sum(dead.values()), len(pending), len(held), ())


def _held_row(one: HeldAction) -> HeldRow:
    return HeldRow(
        one.id,
        one.board,
        one.user_id,
        one.action_id,
        one.delta,
        one.score,
        one.limit,
        one.occurred_at,
        one.state,
        one.act_id,
        one.voided_by,
        one.voided_reason,
        one.season,
    )


async def _place(
    session: Session, user_id: str, board: str, committed: int | None, banned_by: str | None
) -> UserBoard:
    """Return a user's place in Redis; without one, the committed score."""
    try:
        standing = await session.store.standing(board, user_id)
    except (UnknownUser, Uninitialised):
        return UserBoard(board, committed, None, banned_by)
    return UserBoard(board, standing.score, standing.rank, banned_by)


async def _examine(
    session: Session, boards: list[Board], always: tuple[str, ...]
) -> list[BoardHealth]:
    partitions = [
        Partition(board.name, number)
        for board in boards
        for number in range(board.layout.partitions)
    ]
    entries: dict[str, int] = {board.name: 0 for board in boards}
    is_open = dict.fromkeys(entries, True)
    waiting: dict[str, list[Partition]] = {}
    async for partition, found in session.store.survey_all(partitions):
        if isinstance(found, ScoreboardError):
            is_open[partition.board] = False
        else:
            is_open[partition.board] &= found.state.is_open
            entries[partition.board] += found.entries
            if found.entries:
                waiting.setdefault(partition.board, []).append(partition)
    now_ms = await session.store.now_s() * 1000
    health: list[BoardHealth] = []
    chosen = [name for name in entries if name in always or name in waiting or not is_open[name]]
    chosen.sort(key=lambda name: is_open[name])  # closed boards are shown if there are too many
    chosen = chosen[:BOARDS_MAX]
    for name in chosen:
        ages_s: list[float] = []
        for partition in waiting.get(name, []):
            oldest_ms = (await session.store.backlog(partition)).oldest_ms
            if oldest_ms is not None:
                ages_s.append(max(0.0, round((now_ms - oldest_ms) / 1000, 3)))
        health.append(BoardHealth(name, is_open[name], entries[name], max(ages_s, default=None)))
    return health
