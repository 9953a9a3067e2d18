"""Copies the action catalogue and the list of boards from PostgreSQL to Redis.

Both are copied after every change and in a reseed, the list of boards also by the flusher from time
to time. Invariant: copies of one kind are serialised and each reads what is committed, so the last
is the newest.
"""

from scoreboard.ledger.actions import lock_catalogue, select_actions
from scoreboard.ledger.boards import lock_boards, select_board, select_boards
from scoreboard.ledger.pool import Connection, translate_errors
from scoreboard.store.board_list import BoardList
from scoreboard.store.catalogue_mirror import CatalogueMirror


async def mirror_catalogue(store: CatalogueMirror, connection: Connection) -> int:
    """Copy the catalogue and publish the change; return the number of kinds.

    ``connection`` is in autocommit and outside of a transaction.

    Raises RedisUnavailable, Outdated, DatabaseUnavailable: run it again.
    """
    async with translate_errors(), connection.transaction():
        await lock_catalogue(connection)
        seen = await store.catalogue_version()
        # The answer proves that the session held the lock when the version was read.
        kinds = {one.kind: one.counted for one in await select_actions(connection)}
        await store.mirror_actions(kinds, seen=seen)
    return len(kinds)


async def mirror_board(store: BoardList, connection: Connection, name: str) -> None:
    """Copy one board, after it was created or changed; all boards if there is no list.

    A list with this board alone would say that the others do not exist. ``connection`` is in
    autocommit and outside of a transaction.

    Raises UnknownBoard, RedisUnavailable, UnexpectedReply, DatabaseUnavailable: run it again.
    """
    async with translate_errors(), connection.transaction():
        await lock_boards(connection)
        board = await select_board(connection, name)
        has_list = await store.has_list()
        await store.write_boards([board] if has_list else await select_boards(connection))


async def unlist_board(store: BoardList, connection: Connection, name: str) -> None:
    """Remove a deleted board from the list.

    ``connection`` is in autocommit and outside of a transaction.

    Raises RedisUnavailable, UnexpectedReply, DatabaseUnavailable: run it again.
    """
    async with translate_errors(), connection.transaction():
        await lock_boards(connection)
        await store.write_boards([], [name])


async def mirror_boards(store: BoardList, connection: Connection) -> int:
    """Copy the list of boards where it differs; return the number of differences.

    ``connection`` is in autocommit and outside of a transaction.

    Raises RedisUnavailable, UnexpectedReply, DatabaseUnavailable: run it again.
    """
    async with translate_errors(), connection.transaction():
        await lock_boards(connection)
        held = await store.list_boards()
        boards = await select_boards(connection)
        changed = [board for board in boards if held.get(board.name) != board]
        removed = held.keys() - {board.name for board in boards}
        await store.write_boards(changed, removed)
    return len(changed) + len(removed)
