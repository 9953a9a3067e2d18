"""The list of boards in Redis, its copy from PostgreSQL, and the boards that a process finds."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import psycopg
import pytest

from scoreboard.errors import RedisUnavailable, Uninitialised, UnknownBoard
from scoreboard.ledger.boards import insert_board
from scoreboard.ledger.pool import Connection, connect
from scoreboard.model import Board, Layout, Limits, Rules
from scoreboard.recovery.mirror import mirror_board, mirror_boards
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store import board_directory, board_list
from scoreboard.store.board_directory import BoardDirectory
from scoreboard.store.client import make_client
from scoreboard.store.keys import BOARDS
from scoreboard.store.store import Store

GOLF = Board(
    "golf",
    Layout(2, 60, 4, Rules("best", "lowest", 1, 200, "nobody", "stated")),
    is_public=False,
    limits=Limits(per_action=20),
)


@pytest.fixture
def settings(redis_url: str, database_url: str) -> Settings:
    return Settings(redis_url=Secret(redis_url), database_url=Secret(database_url))


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    client = make_client(settings, name="test")
    yield Store(client)
    await client.aclose()


@pytest.fixture
async def connection(settings: Settings) -> AsyncIterator[Connection]:
    connection = await connect(settings, name="test")
    yield connection
    await connection.close()


@pytest.fixture
def directory(settings: Settings, store: Store) -> BoardDirectory:
    return BoardDirectory(settings, store)


async def test_the_copy_has_every_property(store: Store, connection: Connection) -> None:
    await insert_board(connection, GOLF)
    await mirror_board(store, connection, "golf")
    assert await store.listed(["golf", "chess"]) == {"golf": GOLF, "chess": None}


async def test_a_copy_writes_only_what_differs(
    store: Store, connection: Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_list, "PAGE", 2)
    names = [f"board-{number}" for number in range(5)]
    for name in names:
        await insert_board(connection, Board(name))
    before = len(await store.list_boards())
    assert await mirror_boards(store, connection) == 5
    assert await mirror_boards(store, connection) == 0
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute("UPDATE boards SET state = 'archived' WHERE board = 'board-3'")
        owner.execute("DELETE FROM boards WHERE board = 'board-4'")
    await store.write_boards([Board("invented")])
    assert await mirror_boards(store, connection) == 3
    found = await store.list_boards()
    assert sorted(found) == names[:4]
    assert found["board-3"].state == "archived"
    assert before == 0


async def test_values_that_cannot_be_read_are_replaced(
    store: Store, connection: Connection
) -> None:
    await insert_board(connection, GOLF)
    client = store._client
    for value in ("", "{}", "[1]", '{"layout":"1:2","public":true,"state":"open"}', "\x00"):
        await client.hset(BOARDS, "golf", value)
        assert await store.list_boards() == await store.listed(["golf"]) == {}
        assert await mirror_boards(store, connection) == 1
        assert await store.listed(["golf"]) == {"golf": GOLF}


async def test_fields_of_a_later_version_are_ignored(store: Store) -> None:
    text = '{"layout":"1:43200:64","public":true,"state":"open","colour":"red"}'
    await store._client.hset(BOARDS, "main", text)
    assert await store.listed(["main"]) == {"main": Board("main")}


async def test_a_board_made_meanwhile_is_found(
    store: Store, directory: BoardDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_directory, "UNKNOWN_S", 0.0)
    await store.write_boards([Board("main")])
    with pytest.raises(UnknownBoard):
        await directory.find("golf")
    await store.write_boards([GOLF])
    assert directory.known("golf") is None
    assert await directory.find("golf") == GOLF
    assert directory.known("golf") == GOLF


async def test_an_emptied_redis_has_not_lost_the_boards(
    store: Store, directory: BoardDirectory
) -> None:
    """Its clients get 503 and try again, not 404."""
    with pytest.raises(Uninitialised):
        await directory.find("golf")
    assert (await directory.find(None)).name == "main"
    await store.write_boards([GOLF])
    assert await directory.find("golf") == GOLF
    await store._client.delete(BOARDS)
    directory.forget("golf")
    with pytest.raises(Uninitialised):
        await directory.find("golf")


async def test_a_list_of_another_type_is_not_one_without_boards(
    store: Store, directory: BoardDirectory
) -> None:
    await store._client.set(BOARDS, "x")
    with pytest.raises(Uninitialised):
        await directory.find("golf")
    assert (await directory.find("main")).name == "main"


@pytest.mark.parametrize("name", ["", "Main", "a:b", "x" * 33, "main\n"])
async def test_a_name_that_no_board_can_have_is_not_looked_up(name: str) -> None:
    settings = Settings(redis_url=Secret("redis://127.0.0.1:1"))
    client = make_client(settings, name="test")
    with pytest.raises(UnknownBoard):
        await BoardDirectory(settings, Store(client)).find(name)


async def test_without_redis_known_boards_stay_known(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.write_boards([GOLF])
    directory = BoardDirectory(settings, store)
    await directory.find("golf")
    monkeypatch.setattr(board_directory, "REFRESH_S", 0.0)
    directory.forget("golf")
    await directory.find("golf")
    away = Settings(redis_url=Secret("redis://127.0.0.1:1"))
    monkeypatch.setattr(directory, "_boards", Store(make_client(away, name="test")))
    assert await directory.find("golf") == GOLF
    assert (await directory.find("main")).name == "main"
    with pytest.raises(RedisUnavailable):
        await directory.find("chess")


async def test_a_slow_refresh_delays_one_caller_only(
    store: Store, directory: BoardDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.write_boards([GOLF])
    monkeypatch.setattr(board_directory, "REFRESH_S", 0.0)
    await directory.find("golf")
    is_read, go = asyncio.Event(), asyncio.Event()

    async def listed(_names: Sequence[str]) -> dict[str, Board | None]:
        is_read.set()
        await go.wait()
        return {"golf": GOLF}

    monkeypatch.setattr(store, "listed", listed)
    refreshing = asyncio.create_task(directory.find("golf"))
    await is_read.wait()
    assert directory.known("golf") == GOLF
    assert await directory.find("golf") == GOLF
    go.set()
    assert await refreshing == GOLF


async def hmget_calls(store: Store) -> int:
    found = await store._client.info("commandstats")
    return int(found.get("cmdstat_hmget", {"calls": 0})["calls"])


async def test_boards_that_are_due_are_read_together(
    store: Store, directory: BoardDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each board of thousands is read every 30 s, but not in a round trip of its own."""
    names = [f"board-{number}" for number in range(40)]
    await store.write_boards(map(Board, names))
    monkeypatch.setattr(board_directory, "TOGETHER_MAX", 20)
    before = await hmget_calls(store)
    await asyncio.gather(*map(directory.find, names))
    assert await hmget_calls(store) == before + 1
    await store.write_boards([Board("board-1", state="archived")], ["board-2"])
    for kept in directory._kept.values():
        kept.fresh_until_s = 0.0
    assert directory.known("board-0") is None
    await directory.find("board-0")
    assert await hmget_calls(store) == before + 2
    assert directory.known("board-1") == Board("board-1", state="archived")
    assert directory.known("board-2") is None
    assert directory.known("board-19") == Board("board-19")
    assert directory.known("board-20") is None
    with pytest.raises(UnknownBoard):
        await directory.find("board-2")
    assert await hmget_calls(store) == before + 2
    await directory.find("board-39")
    assert await hmget_calls(store) == before + 3
    assert [name for name in names if directory.known(name) is None] == ["board-2"]


async def test_boards_that_are_not_due_are_left_alone(
    store: Store, directory: BoardDirectory
) -> None:
    await store.write_boards([Board("one"), Board("two")])
    await directory.find("one")
    fresh_until_s = directory._kept["one"].fresh_until_s
    await directory.find("two")
    assert directory._kept["one"].fresh_until_s == fresh_until_s


async def test_what_is_asked_for_during_a_reading_is_read_after_it(
    store: Store, directory: BoardDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.write_boards([Board("one"), Board("two"), Board("three")])
    listed, asked, go = store.listed, list[list[str]](), asyncio.Event()

    async def wait_and_list(names: Sequence[str]) -> dict[str, Board | None]:
        asked.append(list(names))
        await go.wait()
        return await listed(names)

    monkeypatch.setattr(store, "listed", wait_and_list)
    first = asyncio.create_task(directory.find("one"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    others = [asyncio.create_task(directory.find(name)) for name in ("two", "two", "three", "four")]
    await asyncio.sleep(0)
    others[0].cancel()
    go.set()
    assert (await first).name == "one"
    found = await asyncio.gather(*others, return_exceptions=True)
    assert [type(one) for one in found] == [asyncio.CancelledError, Board, Board, UnknownBoard]
    assert asked == [["one"], ["two", "three", "four"]]


async def test_an_unreadable_board_does_not_concern_others(
    store: Store, directory: BoardDirectory
) -> None:
    await store.write_boards([Board("one"), Board("two")])
    await directory.find("two")
    await store._client.hset(BOARDS, mapping={"bad": "{}", "two": "{}"})
    directory._kept["two"].fresh_until_s = 0.0
    found = await asyncio.gather(
        *map(directory.find, ("one", "bad", "two")), return_exceptions=True
    )
    assert found[0] == Board("one")
    assert isinstance(found[1], Uninitialised)
    assert found[2] == Board("two")


async def test_memory_is_bounded(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_directory, "BOARDS_KEPT_MAX", 3)
    directory = BoardDirectory(settings, store)
    await store.write_boards([Board(f"board-{number}") for number in range(6)])
    for number in range(6):
        await directory.find(f"board-{number}")
        with pytest.raises(UnknownBoard):
            await directory.find(f"unknown-{number}")
    assert len(directory._kept) == len(directory._unknown_until_s) == 3
    assert directory.known("board-5") is not None
    assert directory.known("board-0") is None


async def test_who_asks_gets_an_unexpected_error_and_later_calls_work(
    directory: BoardDirectory, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: Sequence[str]) -> dict[str, Board | None]:
        raise TypeError("unexpected")

    await store.write_boards([Board(), GOLF])
    with monkeypatch.context() as patched:
        patched.setattr(store, "listed", fail)
        found = await asyncio.gather(
            directory.find("golf"), directory.find("chess"), return_exceptions=True
        )
    assert [type(error) for error in found] == [TypeError, TypeError]

    assert await directory.find("golf") == GOLF
