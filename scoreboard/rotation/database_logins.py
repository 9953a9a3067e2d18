"""Rotation of PostgreSQL logins: two logins of one role, which take turns.

The login in use keeps its password until it is retired, so sessions and pools are not affected. The
server gets a SCRAM verifier, so neither its log nor pg_stat_activity contains a password.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import psycopg

from scoreboard.errors import DatabaseUnavailable, OperatorMistake
from scoreboard.ledger import pool
from scoreboard.ledger.pool import Connection, translate_errors
from scoreboard.rotation.logins import read_login, replace_login
from scoreboard.rotation.steps import refused
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.security.secret_backends import Credentials

_LOGIN: Final = re.compile(r"(?P<role>.+)_(?P<turn>[ab])")
_NAME: Final = "rotation"
_REFUSALS: Final = ("28P01", "28000")
"""SQLSTATEs of a refused login: invalid_password, invalid_authorization_specification."""


class PostgresLogin:
    """The login of one service; ``settings`` are those of the rotator."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def make_document(self, current: Secret) -> Secret:
        """Return the document of the other login, with a new password.

        Raises OperatorMistake if the current login's name does not end in ``_a`` or ``_b``.
        """
        role, turn = _split(read_login(current, "current").username)
        return replace_login(current, f"{role}_{'b' if turn == 'a' else 'a'}")

    async def set(self, current: Secret, pending: Secret) -> None:
        """Set the password of the login that is not in use, unless it is set."""
        old, new = read_login(current, "current"), read_login(pending, "pending")
        if _split(old.username)[0] != _split(new.username)[0] or old.username == new.username:
            raise OperatorMistake(
                f"The pending version is of {new.username} and the current one of {old.username}; "
                "discard it with --discard"
            )
        if await self._can_log_in(new):
            return
        async with self._connect() as connection:
            verifier = connection.pgconn.encrypt_password(
                new.password.reveal().encode(), new.username.encode(), b"scram-sha-256"
            )
            await _alter(connection, new.username, verifier.decode())

    async def test(self, pending: Secret) -> None:
        """Log in as the pending login, and check that it has the rights of its role."""
        login = read_login(pending, "pending")
        role, _ = _split(login.username)
        try:
            async with self._connect(login) as connection, translate_errors():
                row = await (
                    await connection.execute(
                        "SELECT to_regrole(%(role)s) IS NOT NULL"
                        " AND pg_has_role(to_regrole(%(role)s)::oid, 'USAGE')",
                        {"role": role},
                    )
                ).fetchone()
        except DatabaseUnavailable as error:
            if _is_refusal(error):
                raise refused(f"PostgreSQL refuses {login.username}") from error
            raise
        if row is None or not row[0]:
            raise refused(f"{login.username} does not have the rights of {role}")

    async def retire(self, current: Secret, pending: Secret | None, previous: Secret) -> None:
        """Remove the password of the previous login, unless it is in use again."""
        old = read_login(previous, "previous").username
        used = {read_login(current, "current").username}
        if pending is not None:
            used.add(read_login(pending, "pending").username)
        if old not in used:
            async with self._connect() as connection:
                await _alter(connection, old, None)

    async def disconnect(self, previous: Secret) -> int:
        """End the sessions of the previous login."""
        async with self._connect() as connection, translate_errors():
            row = await (
                await connection.execute(
                    "SELECT end_login_sessions(%s)", (read_login(previous, "previous").username,)
                )
            ).fetchone()
            return row[0] if row else 0

    async def _can_log_in(self, login: Credentials) -> bool:
        try:
            async with self._connect(login):
                return True
        except DatabaseUnavailable as error:
            if _is_refusal(error):
                return False
            raise

    @asynccontextmanager
    async def _connect(self, login: Credentials | None = None) -> AsyncIterator[Connection]:
        """Connect as the rotator, or as ``login``."""
        if login is None:
            connection = await pool.connect(self._settings, name=_NAME)
        else:
            connection = await pool.connect_as(self._settings, login, name=_NAME)
        try:
            yield connection
        finally:
            await connection.close()


async def _alter(connection: Connection, login: str, verifier: str | None) -> None:
    try:
        async with translate_errors():
            await connection.execute("SELECT set_login_password(%s, %s)", (login, verifier))
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedFunction) as error:
        raise OperatorMistake(
            f"The password of {login} cannot be changed: {pool.describe(error)}"
        ) from error
    except psycopg.errors.InternalError_ as error:
        # "tuple concurrently updated": another rotation changes the same login.
        raise DatabaseUnavailable(
            f"The password of {login} was not changed: {pool.describe(error)}"
        ) from error


def _split(username: str) -> tuple[str, str]:
    found = _LOGIN.fullmatch(username)
    if found is None:
        raise OperatorMistake(
            f"The login {username!r} cannot be rotated: its name must end in _a or _b"
        )
    return found["role"], found["turn"]


def _is_refusal(error: DatabaseUnavailable) -> bool:
    """Return whether the server answered and refused the login."""
    cause = error.__cause__
    if not isinstance(cause, psycopg.OperationalError):
        return False
    # libpq reports a failed login without SQLSTATE; it is known that a password was asked for.
    return cause.sqlstate in _REFUSALS or bool(cause.pgconn and cause.pgconn.used_password)
