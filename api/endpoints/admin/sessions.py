"""Who may administer, and the stores that an administrator's request uses.

Invariants: few such requests run at once, and further ones are refused, so that they cannot take
PostgreSQL's connections from the others; each has a connection of its own, because it may hold the
operators' lock, which lasts as long as the connection.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, cast

import msgspec
from litestar.handlers import BaseRouteHandler
from msgspec import Struct

from api.endpoints.fast_update import check_media_type
from api.endpoints.scores import AnyConnection, AnyRequest, get_services
from scoreboard.errors import Malformed, Overloaded, SettingInvalid
from scoreboard.ledger.boards import select_board
from scoreboard.ledger.migrations import require_schema
from scoreboard.ledger.pool import Connection, connect
from scoreboard.ledger.sessions import require_operator, require_session
from scoreboard.model import Board
from scoreboard.moderation.acts import Moderator
from scoreboard.runtime.settings import Settings
from scoreboard.security.access import require_admin
from scoreboard.security.credentials import require_secrets
from scoreboard.security.tokens import Caller
from scoreboard.store.client import make_client
from scoreboard.store.store import Store

SESSIONS_MAX: Final = 4
"""Maximum requests of administrators at once in a process."""

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
        self._running = 0

    async def start(self) -> None:
        """Read the secrets.

        Raises SecretsUnavailable, SettingInvalid if one is not named.
        """
        await require_secrets(self._logins, "redis", "database")

    async def aclose(self) -> None:
        """Close the connections to Redis."""
        await self._client.aclose()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Session]:
        """Yield a session.

        Raises Overloaded, DatabaseUnavailable, SchemaMismatch, UnsafeDatabase.
        """
        if self._running >= SESSIONS_MAX:
            raise Overloaded("Too many requests of administrators at the moment")
        self._running += 1
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
            self._running -= 1

    def moderator(self, session: Session, board: Board, caller: Caller) -> Moderator:
        """Return a moderator of a board, in the name of the caller."""
        return Moderator(
            session.store,
            session.connection,
            board,
            actor=actor_of(caller),
            stream_cap=self.settings.stream_cap,
        )


def actor_of(caller: Caller) -> str:
    """Return the name for the audit log; operators at a command line have names without `sub:`."""
    return f"sub:{caller.subject}"


async def find_board(session: Session, name: str) -> Board:
    """Return a board.

    Raises UnknownBoard, DatabaseUnavailable.
    """
    return await select_board(session.connection, name)


async def require_administrator(connection: AnyConnection, _: BaseRouteHandler) -> None:
    """Check that the caller may administer, and then that the body is JSON (a guard)."""
    headers = dict(connection.scope["headers"])
    caller = await get_services(connection).verifier.authenticate(headers.get(b"authorization"))
    require_admin(caller)
    connection.state["caller"] = caller
    if headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers:
        check_media_type(headers.get(b"content-type"))
        try:
            await cast("AnyRequest", connection).json()  # the framework keeps the result
        except (UnicodeDecodeError, RecursionError):  # which the framework takes for its own errors
            raise Malformed("The body is not valid JSON") from None


def sessions_of(request: AnyRequest) -> AdminSessions:
    """Return the sessions of a request's application."""
    return cast("AdminSessions", request.app.state["admin"])


def caller_of(request: AnyRequest) -> Caller:
    """Return the caller that the guard has found."""
    return cast("Caller", request.state["caller"])
