"""Users in PostgreSQL: ids, names, e-mail addresses and metadata.

The caller owns the connection and its transaction. Each constant has the name of its query file; a
test compares the two sets.
"""

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec
from msgspec import Struct

from scoreboard.errors import UnknownUser
from scoreboard.ledger.pool import Connection, translate_errors
from scoreboard.model import user_uuid
from scoreboard.runtime import resources

_SELECT_PROFILES: Final = resources.query("select_public_profiles")
_SELECT_NAMES: Final = resources.query("select_names")
_SELECT_USER: Final = resources.query("select_user")
_SEARCH_USERS: Final = resources.query("search_users")
_SELECT_USER_BOARDS: Final = resources.query("select_user_boards")
_SELECT_USER_SEASONS: Final = resources.query("select_user_seasons")
_ENSURE_USER: Final = resources.query("ensure_user")
_UPDATE_USER: Final = resources.query("update_user")
_CREATE_USER_IMPORT: Final = resources.query("create_user_import")
_COPY_USER_IMPORT: Final = resources.query("copy_user_import")
_ENSURE_IMPORTED_USERS: Final = resources.query("ensure_imported_users")
_ENSURE_CONFLICTING_USERS: Final = resources.query("ensure_conflicting_users")
_DELETE_ERASED_IMPORTS: Final = resources.query("delete_erased_imports")
_MERGE_USER_IMPORT: Final = resources.query("merge_user_import")
_ERASE_USER: Final = resources.query("erase_user")
_SELECT_ERASURE: Final = resources.query("select_erasure")


PERSONAL: Final = ("name", "email", "metadata")
"""The attributes of a user that an operator sets and an erasure removes."""

METADATA_BYTES: Final = 1024
"""Longest metadata of a user, as compact JSON in UTF-8."""
_WILDCARD: Final = re.compile(r"[\\%_]")
"""What LIKE does not compare as it is."""


class User(Struct, frozen=True, kw_only=True):
    """A user and its score on a board (None: no score)."""

    id: UUID
    name: str | None
    email: str | None
    metadata: str | None
    created_at: datetime
    score: int | None
    actions: int | None
    reached_at: datetime | None


class Profile(Struct, frozen=True):
    """The attributes of a user that an operator sets; None leaves one unchanged.

    ``metadata`` is the text of a JSON object of at most ``METADATA_BYTES``; ``{}`` is none.
    """

    user_id: str
    name: str | None = None
    email: str | None = None
    metadata: str | None = None


class PublicProfile(Struct, frozen=True):
    """What readers of a board see of a user; None: not known. ``metadata`` is a JSON object."""

    name: str | None
    metadata: str | None


class UserOnBoard(Struct, frozen=True):
    """A user's committed score on a board, and the act that bans it there; None: none."""

    board: str
    score: int | None
    banned_by: str | None


class UserInSeason(Struct, frozen=True):
    """A user's score in an ended season, and its final rank; None: it was banned at the end."""

    board: str
    season: str
    score: int
    rank: int | None


async def search_users(
    connection: Connection, query: str, *, limit: int
) -> list[tuple[str, str | None]]:
    """Find users by a whole id, or by the beginning of an id or of a name; return ids and names.

    The whole id is first. Case does not matter for names. Raises DatabaseUnavailable.
    """
    beginning = _WILDCARD.sub(r"\\\g<0>", query) + "%"
    async with translate_errors():
        parameters = {"query": query, "beginning": beginning, "limit": limit}
        rows = await (await connection.execute(_SEARCH_USERS, parameters)).fetchall()
    return [(str(user_id), name) for user_id, name in rows]


async def select_user_boards(
    connection: Connection, user_id: str, *, limit: int
) -> list[UserOnBoard]:
    """List the boards on which a user has a score, in any season, or is banned, by name.

    The score is that of the newest season; None if the user has none there.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        parameters = {"user_id": user_id, "limit": limit}
        rows = await (await connection.execute(_SELECT_USER_BOARDS, parameters)).fetchall()
    return [UserOnBoard(*row) for row in rows]


async def select_user_seasons(
    connection: Connection, user_id: str, *, limit: int
) -> list[UserInSeason]:
    """List the ended seasons in which a user has a score, latest first.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        parameters = {"user_id": user_id, "limit": limit}
        rows = await (await connection.execute(_SELECT_USER_SEASONS, parameters)).fetchall()
    return [UserInSeason(*row) for row in rows]


async def select_public_profiles(
    connection: Connection, user_ids: Sequence[str]
) -> dict[str, PublicProfile]:
    """Read the names and metadata of users; users without both are left out.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        parameters = {"user_ids": list(user_ids)}
        rows = await (await connection.execute(_SELECT_PROFILES, parameters)).fetchall()
    return {user_id: PublicProfile(name, metadata) for user_id, name, metadata in rows}


async def select_names(connection: Connection, user_ids: Sequence[str]) -> dict[str, PublicProfile]:
    """Read the names of users, for a login that may not read more; users without are left out.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        parameters = {"user_ids": list(user_ids)}
        rows = await (await connection.execute(_SELECT_NAMES, parameters)).fetchall()
    return {user_id: PublicProfile(name, None) for user_id, name in rows}


async def select_user(connection: Connection, user_id: str, *, scores: str) -> User:
    """Read a user and its row of ``scores`` under a name (scoreboard.model.scores_name).

    Raises UnknownUser, DatabaseUnavailable.
    """
    async with translate_errors():
        parameters = {"user_id": user_id, "scores": scores}
        row = await (await connection.execute(_SELECT_USER, parameters)).fetchone()
    if row is None:
        raise UnknownUser(f"User {user_id} does not exist")
    names = User.__struct_fields__
    return User(**dict(zip(names, row, strict=True)))


async def ensure_user(connection: Connection, user_id: str) -> None:
    """Insert a user's row if there is none; run it in a transaction.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        await connection.execute(
            _ENSURE_USER, {"user_id": user_id, "preferred_id": user_uuid(user_id)}
        )


async def upsert_user(connection: Connection, profile: Profile) -> None:
    """Insert or update a user; None leaves an attribute unchanged. Run it in a transaction.

    Raises DatabaseUnavailable.
    """
    await ensure_user(connection, profile.user_id)
    async with translate_errors():
        await connection.execute(_UPDATE_USER, msgspec.structs.asdict(profile))


class Imported(Struct, frozen=True):
    """The number of users that an import wrote, and of erased ones that it left out."""

    written: int
    erased: int


async def import_users(connection: Connection, profiles: Iterable[Profile]) -> Imported:
    """Insert or update many users, except erased ones. Run it in a transaction.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        await connection.execute(_CREATE_USER_IMPORT)
        async with connection.cursor() as cursor:
            async with cursor.copy(_COPY_USER_IMPORT) as copy:
                for one in profiles:
                    fields = (one.user_id, one.name, one.email, one.metadata)
                    await copy.write_row((user_uuid(one.user_id), *fields))
            await cursor.execute(_DELETE_ERASED_IMPORTS)
            erased = cursor.rowcount
            await cursor.execute(_ENSURE_IMPORTED_USERS)
            await cursor.execute(_ENSURE_CONFLICTING_USERS)
            await cursor.execute(_MERGE_USER_IMPORT)
            return Imported(cursor.rowcount, erased)


async def erase_user(connection: Connection, user_id: str) -> list[str]:
    """Erase the name, the e-mail address and the metadata of a user; return which of them it had.

    The row stays: scores and ledger refer to it. Run it in a transaction.

    Raises UnknownUser, DatabaseUnavailable.
    """
    async with translate_errors():
        row = await (await connection.execute(_ERASE_USER, {"user_id": user_id})).fetchone()
    if row is None:
        raise UnknownUser(f"User {user_id} does not exist")
    return [name for name, is_held in zip(PERSONAL, row, strict=False) if is_held]


async def select_erasure(connection: Connection, user_id: str) -> datetime | None:
    """Return when a user was erased; None if never, or if it was set again since.

    The audit log is the record of erasures, because it is append-only.

    Raises DatabaseUnavailable.
    """
    async with translate_errors():
        row = await (await connection.execute(_SELECT_ERASURE, {"user_id": user_id})).fetchone()
    return row[0] if row else None
