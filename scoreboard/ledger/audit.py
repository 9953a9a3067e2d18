"""The audit log: one row per administrative change, in the transaction of the change.

Each row has the hash of the row before (sql/migrations/0015), so a row that was changed, removed or
inserted later is found by ``verify_chain``. After the COMMIT, each row also becomes a line of the
audit stream. Each constant has the name of its query file; a test compares the two sets.
"""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final

from msgspec import Struct
from psycopg.types.json import Jsonb

from scoreboard.ledger.pool import Connection, pages, translate_errors
from scoreboard.runtime import resources
from scoreboard.runtime.audit import write_audit

PAGE: Final = 1000
"""Rows of one read."""

_LOCK_AUDIT: Final = resources.query("lock_audit")
_INSERT_AUDIT: Final = resources.query("insert_audit")
_SELECT_AUDIT: Final = resources.query("select_audit")
_SELECT_AUDIT_CHAIN: Final = resources.query("select_audit_chain")


class AuditRow(Struct, frozen=True):
    """A row of the audit log."""

    seq: int
    at: datetime
    actor: str
    action: str
    board: str | None
    detail: dict[str, Any]
    hash: str


class AuditFilter(Struct, frozen=True, kw_only=True):
    """Which rows to list; None means all.

    ``action`` is a whole action or its first word, ``last`` the greatest number.
    """

    since: datetime | None = None
    until: datetime | None = None
    actor: str | None = None
    action: str | None = None
    board: str | None = None
    user: str | None = None
    last: int | None = None


class ChainHead(Struct, frozen=True):
    """The last row of the chain; ``seq`` 0 and an empty hash if there is none."""

    seq: int = 0
    hash: str = ""


class ChainVerdict(Struct, frozen=True):
    """The result of a verification: the head, and what is wrong with the first bad row, if any."""

    head: ChainHead
    problem: str = ""


class AuditTrail:
    """Inserts rows in one transaction; ``audited`` makes it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lines: list[dict[str, Any]] = []

    async def reserve(self) -> None:
        """Wait for the right to insert, before a change that a rollback would not undo.

        Raises DatabaseUnavailable: another transaction has inserted a row and does not end.
        """
        async with translate_errors():
            await self._connection.execute(_LOCK_AUDIT)

    async def insert(
        self, *, actor: str, action: str, board: str | None, detail: dict[str, Any]
    ) -> None:
        """Record an administrative change; insert it last, because other changes then wait.

        Raises DatabaseUnavailable.
        """
        detail = _storable(detail)
        actor = _storable(actor)
        values = {"actor": actor, "action": action, "board": board, "detail": Jsonb(detail)}
        async with translate_errors():
            row = await (await self._connection.execute(_INSERT_AUDIT, values)).fetchone()
        seq, digest = row or (None, None)
        self._lines.append(
            {
                "action": action,
                "actor": actor,
                "board": board,
                "target_id": detail.get("user"),
                "audit_seq": seq,
                "audit_hash": digest,
                "audit_detail": detail,
            }
        )

    def write_lines(self) -> None:
        """Write the lines of the committed rows."""
        for line in self._lines:
            write_audit(**line)


@asynccontextmanager
async def audited(connection: Connection, *, is_dry: bool = False) -> AsyncIterator[AuditTrail]:
    """Open a transaction with an audit trail; ``is_dry`` rolls it back at the end.

    Raises DatabaseUnavailable; no line is written if it is raised by COMMIT.
    """
    trail = AuditTrail(connection)
    async with translate_errors(), connection.transaction(force_rollback=is_dry):
        yield trail
    if not is_dry:
        trail.write_lines()


async def select_audit(
    connection: Connection, chosen: AuditFilter, *, limit: int | None
) -> AsyncIterator[list[AuditRow]]:
    """List rows, newest first, a page at a time; ``limit`` None lists all.

    ``connection`` is in autocommit. Raises DatabaseUnavailable.
    """
    values = {name: getattr(chosen, name) for name in chosen.__struct_fields__}
    async with translate_errors(), connection.transaction():
        async for page in pages(connection, _SELECT_AUDIT, {**values, "limit": limit}, PAGE):
            yield [AuditRow(*row) for row in page]


async def verify_chain(connection: Connection, expected: ChainHead | None = None) -> ChainVerdict:
    """Compute every hash again, without the database's functions.

    ``expected`` is the head of an earlier verification: the chain must still contain it, which
    shows that the whole chain was not computed anew and its end was not removed.

    Raises DatabaseUnavailable.
    """
    head = ChainHead()
    is_found = expected is None or not expected.seq
    async for seq, previous, digest, content in _read_chain(connection):
        if seq != head.seq + 1:
            return ChainVerdict(head, f"rows {head.seq + 1} to {seq - 1} are missing")
        if previous != head.hash:
            return ChainVerdict(head, f"row {seq} does not follow row {head.seq}")
        if hashlib.sha256(content.encode()).hexdigest() != digest:
            return ChainVerdict(head, f"row {seq} was changed")
        head = ChainHead(seq, digest)
        if expected is not None and expected.seq == seq:
            if expected.hash != digest:
                return ChainVerdict(head, f"row {seq} had another hash before")
            is_found = True
    if not is_found:
        return ChainVerdict(head, f"the rows after {head.seq} are missing")
    return ChainVerdict(head)


async def _read_chain(connection: Connection) -> AsyncIterator[tuple[int, str, str, str]]:
    async with translate_errors(), connection.transaction():
        async for page in pages(connection, _SELECT_AUDIT_CHAIN, {}, PAGE):
            for seq, previous, digest, content in page:
                yield seq, previous, digest, content


def _storable(value: Any) -> Any:  # noqa: ANN401 (a value of JSON)
    """Escape what JSONB cannot hold: a change that was made in Redis must get its row."""
    match value:
        case str():
            return value.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
        case dict():
            return {name: _storable(item) for name, item in value.items()}
        case list() | tuple():
            return [_storable(item) for item in value]
        case _:
            return value
