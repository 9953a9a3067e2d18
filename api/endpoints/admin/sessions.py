"""Who may administer, and the stores that an administrator's request uses.

Invariants: few such requests run at once, and further ones wait and are then refused, so that they
cannot take PostgreSQL's connections from the others; each has a connection of its own, because it
may hold the operators' lock, which lasts as long as the connection. An applied act waits for its
commit without a session; a preview or a void may wait for commits with one, which does not keep
reads from running.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache
from typing import Any, Final, cast

import msgspec
from litestar.handlers import BaseRouteHandler
from msgspec import Struct

from api.edge.bodies import body_decoder, require_distinct_fields
from api.endpoints.fast_update import check_media_type
from api.endpoints.scores import BODY, AnyConnection, AnyRequest, get_services
from scoreboard.errors import Overloaded, SettingInvalid, Unavailable
from scoreboard.ledger.acts import Act, select_act
from scoreboard.ledger.boards import select_board
from scoreboard.ledger.migrations import require_schema
from scoreboard.ledger.pool import Connection, connect
from scoreboard.ledger.sessions import require_operator, require_session
from scoreboard.model import Board, Partition
from scoreboard.moderation.acts import Done, Moderator
from scoreboard.moderation.plans import COMMIT_S, POLL_S, home_of
from scoreboard.runtime.settings import Settings
from scoreboard.security.access import require_admin
from scoreboard.security.credentials import require_secrets
from scoreboard.security.tokens import Caller
from scoreboard.store.client import make_client
from scoreboard.store.store import Store

SESSIONS_MAX: Final = 4
"""Maximum reads of administrators at once in a process, and the same number of changes."""

WAIT_S: Final = 2.0
"""Longest wait for a session."""

STATEMENT_S: Final = 5
"""Time limit of a statement: PostgreSQL must not go on after the answer."""


class Session(Struct, frozen=True):
    """The stores of a request, with the rights of an operator."""

    store: Store
    connection: Connection


class AdminSessions:
    """Opens sessions; ``running`` holds their client of Redis."""

    def __init__(self, settings: Settings) -> None:
        """Read the settings; connect to nothing.

        Raises SettingInvalid.
        """
        if bool(settings.admin_redis_secret) != bool(settings.admin_database_secret):
            raise SettingInvalid(
                "SCOREBOARD_ADMIN_REDIS_SECRET and SCOREBOARD_ADMIN_DATABASE_SECRET are both needed"
            )
        self.settings = settings
        self._logins = msgspec.structs.replace(
            settings,
            redis_secret=settings.admin_redis_secret or settings.redis_secret,
            database_secret=settings.admin_database_secret or settings.database_secret,
        )
        self._client = make_client(self._logins, name="admin")
        self._reads = asyncio.Semaphore(SESSIONS_MAX)
        self._changes = asyncio.Semaphore(SESSIONS_MAX)

    async def start(self) -> None:
        """Read the secrets.

        Raises SecretsUnavailable, SettingInvalid if one is not named.
        """
        await require_secrets(self._logins, "redis", "database")

    async def aclose(self) -> None:
        """Close the connections to Redis."""
        await self._client.aclose()

    @asynccontextmanager
    async def open(self, *, changes: bool = False) -> AsyncIterator[Session]:
        """Yield a session for a read, or for a change and what previews it.

        Raises Overloaded, DatabaseUnavailable, SchemaMismatch, UnsafeDatabase.
        """
        places = self._changes if changes else self._reads
        try:
            async with asyncio.timeout(WAIT_S):
                await places.acquire()
        except TimeoutError:
            raise Overloaded("Too many requests of administrators at the moment") from None
        try:
            connection = await connect(
                self._logins, name="admin", autocommit=True, statement_timeout=f"{STATEMENT_S}s"
            )
            try:
                await require_session(self._logins, connection)
                await require_schema(connection)
                await require_operator(connection)
                yield Session(Store(self._client), connection)
            finally:
                await connection.close()
        finally:
            places.release()

    def moderator(self, session: Session, board: Board, caller: Caller) -> Moderator:
        """Return a moderator of a board, in the name of the caller."""
        return Moderator(
            session.store,
            session.connection,
            board,
            actor=actor_of(caller),
            stream_cap=self.settings.stream_cap,
            awaits_commit=False,
        )

    async def await_commit(self, board: Board, act: Act, done: Done) -> Done:
        """Wait until PostgreSQL has an act, and return what is then known of it.

        If that takes too long, or cannot be found out, ``is_committed`` is false.
        """
        if done.is_committed:
            return done
        is_committed = False
        with suppress(TimeoutError, Unavailable):
            async with asyncio.timeout(COMMIT_S):
                await self._until_trimmed(home_of(board, act.user_id))
                async with self.open() as session:
                    found = await select_act(session.connection, act.id)
                is_committed = found.state == "applied"
        return msgspec.structs.replace(done, is_committed=is_committed)

    async def _until_trimmed(self, partition: Partition) -> None:
        """Wait until the flusher has committed what a partition has now, or it was reseeded."""
        store = Store(self._client)
        now = state = await store.state(partition)
        while state.epoch == now.epoch and state.committed_seq < now.seq:
            await asyncio.sleep(POLL_S)
            state = await store.state(partition)


def actor_of(caller: Caller) -> str:
    """Return the name for the audit log; operators at a command line have names without `sub:`."""
    return f"sub:{caller.subject}"


async def find_board(session: Session, name: str) -> Board:
    """Return a board.

    Raises UnknownBoard, DatabaseUnavailable.
    """
    return await select_board(session.connection, name)


async def require_administrator(connection: AnyConnection, handler: BaseRouteHandler) -> None:
    """Check that the caller may administer, and then decode the body (a guard)."""
    headers = dict(connection.scope["headers"])
    caller = await get_services(connection).verifier.authenticate(headers.get(b"authorization"))
    require_admin(caller)
    connection.state["caller"] = caller
    data = handler.parsed_fn_signature.parameters.get("data")
    if data is not None:
        check_media_type(headers.get(b"content-type"))
        body = await cast("AnyRequest", connection).body()
        connection.state[BODY] = _decoder_of(data.annotation)(body)
        require_distinct_fields(body)


@cache
def _decoder_of(kind: type[Any]) -> Callable[[bytes], Any]:
    return body_decoder(kind)


def sessions_of(request: AnyRequest) -> AdminSessions:
    """Return the sessions of a request's application."""
    return cast("AdminSessions", request.app.state["admin"])


def caller_of(request: AnyRequest) -> Caller:
    """Return the caller that the guard has found."""
    return cast("Caller", request.state["caller"])
