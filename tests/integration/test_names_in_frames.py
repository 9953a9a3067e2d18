"""Names in the messages to viewers: read from PostgreSQL, announced on change, never delaying."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from scoreboard.ledger import name_cache, pool
from scoreboard.ledger.name_cache import CHANNEL, NAMES_MAX, NameCache
from scoreboard.ledger.pool import Connection
from scoreboard.ledger.users import (
    Profile,
    PublicProfile,
    erase_user,
    import_users,
    select_names,
    upsert_user,
)
from scoreboard.runtime.settings import Settings, load
from streamer.server import has_database
from tests.integration.test_streamer_events import Events, listening
from tests.support.clients.viewer import PATH, Connect, RawViewer, StartStreamer, playing
from tests.support.eventually import eventually_async
from tests.support.fakes.proxy import MakeProxy, Proxy
from tests.support.servers.api import StartApi

SOON_S = 2.0
"""In which a changed name is to be seen."""

Names = dict[str, str | None]


def settings_of(database_url: str) -> Settings:
    return load({"REDIS_URL": "redis://unused", "DATABASE_URL": database_url})


@asynccontextmanager
async def writing(database_url: str) -> AsyncIterator[Connection]:
    """Yield a connection whose transaction is committed at the end."""
    connection = await pool.connect(settings_of(database_url), name="test", autocommit=False)
    async with connection:
        yield connection


async def name_users(database_url: str, **names: str) -> None:
    async with writing(database_url) as connection:
        for user, name in names.items():
            await upsert_user(connection, Profile(user, name))


async def erase(database_url: str, user: str) -> None:
    async with writing(database_url) as connection:
        await erase_user(connection, user)


def names_in(board: dict[str, Any]) -> Names:
    return {row["userId"]: row.get("name") for row in board["leaderboard"]}


async def shown(viewer: RawViewer | Events, names: Names, within_s: float = 30.0) -> dict[str, Any]:
    """Return the first board with these names."""
    async with asyncio.timeout(within_s):
        while True:
            board = await viewer.next("leaderboard")
            if names_in(board) == names:
                return board


@asynccontextmanager
async def running(names: NameCache) -> AsyncIterator[NameCache]:
    task = asyncio.create_task(names.run())
    try:
        yield names
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture
async def proxy(make_proxy: MakeProxy, postgres_server: Any) -> Proxy:
    return await make_proxy(postgres_server.port)


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Collect what the cache logs: event and reason."""
    lines: list[tuple[str, str]] = []

    class Log:
        def warning(self, event: str, *, reason: str = "") -> None:
            lines.append((event, reason))

        info = warning

    monkeypatch.setattr(name_cache, "_log", Log())
    return lines


async def test_viewers_get_names_with_the_same_position_of_the_board(
    start_streamer: StartStreamer, connect: Connect, database_url: str
) -> None:
    await name_users(database_url, first="Ada", second="Bob <b>")
    streamer = await start_streamer(database_url=database_url)
    viewer = await connect(streamer.port)
    named = await shown(viewer, {"first": "Ada", "second": "Bob <b>"})

    positions = {(one["epoch"], one["seq"], one["at"]) for one in viewer.messages}
    assert positions == {(named["epoch"], named["seq"], named["at"])}
    late = await connect(streamer.port)
    assert await late.next() == named, "a known name is in the first message"
    async with playing(streamer.settings) as submit:
        await submit("second", 500)
        changed = await viewer.next("leaderboard")
    assert changed["seq"] > named["seq"]
    assert names_in(changed) == {"second": "Bob <b>", "first": "Ada"}


async def test_places_and_windows_have_names_too(
    start_streamer: StartStreamer, connect: Connect, database_url: str
) -> None:
    await name_users(database_url, first="Ada", second="Bob")
    streamer = await start_streamer(database_url=database_url)
    window = await connect(streamer.port, path=f"{PATH}?rows=20")
    await shown(window, {"first": "Ada", "second": "Bob"}, SOON_S)
    viewer = await connect(streamer.port)
    await viewer.send_json({"type": "watch", "userIds": ["second"]})

    async def place(name: str, above: str) -> None:
        async with asyncio.timeout(SOON_S):
            while True:
                found = await viewer.next("place")
                if found.get("name") == name and found["above"][0].get("name") == above:
                    return

    await place("Bob", "Ada")
    await name_users(database_url, first="Lovelace", second="Babbage")
    await place("Babbage", "Lovelace")
    await shown(window, {"first": "Lovelace", "second": "Babbage"}, SOON_S)
    await erase(database_url, "second")
    async with asyncio.timeout(SOON_S):
        while "name" in await viewer.next("place"):
            pass
    await shown(window, {"first": "Lovelace", "second": None}, SOON_S)


async def test_a_changed_name_is_sent_once_to_all_viewers(
    start_streamer: StartStreamer, start_api: StartApi, connect: Connect, database_url: str
) -> None:
    await name_users(database_url, first="Ada", second="Bob")
    streamer = await start_streamer(database_url=database_url)
    client = await start_api(database_url=database_url, open=())
    viewer = await connect(streamer.port)
    async with listening(client) as events:
        for one in (viewer, events):
            await shown(one, {"first": "Ada", "second": "Bob"})
        await streamer.wait_until_quiet()
        before, first_id = len(viewer.messages), events.last_id

        await name_users(database_url, first="Lovelace", second="Babbage")
        renamed: Names = {"first": "Lovelace", "second": "Babbage"}
        board = await shown(viewer, renamed, SOON_S)
        event = await shown(events, renamed, SOON_S)

        assert len(viewer.messages) == before + 1, "names that change together are sent together"
        assert (board["epoch"], board["seq"]) == (event["epoch"], event["seq"])
        assert events.last_id != first_id
        again_id = events.last_id
    async with listening(client, headers={"Last-Event-ID": first_id}) as again:
        assert names_in(await again.next()) == renamed, "its names were others"
    async with listening(client, headers={"Last-Event-ID": again_id}) as again:
        assert (await again.next())["type"] == "heartbeat"
        assert again.last_id == again_id


async def test_an_old_name_leaves_places_while_the_database_is_away(
    start_streamer: StartStreamer,
    connect: Connect,
    database_url: str,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may have been erased; the place itself does not change."""
    monkeypatch.setattr("streamer.fanout.place_sampler.RENEW_S", 1.0)
    await name_users(database_url, first="Ada", second="Bob")
    streamer = await start_streamer(database_url=proxy.through(database_url))
    viewer = await connect(streamer.port)
    await viewer.send_json({"type": "watch", "userIds": ["second"]})
    async with asyncio.timeout(SOON_S):
        while (await viewer.next("place")).get("name") != "Bob":
            pass
    proxy.refuse()

    monkeypatch.setattr(name_cache, "KEPT_S", 0.0)

    async with asyncio.timeout(10):
        while "name" in await viewer.next("place"):
            pass


async def test_other_names_do_not_hide_a_lost_notification_and_read_no_board(
    start_streamer: StartStreamer,
    connect: Connect,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await name_users(database_url, first="Ada")
    streamer = await start_streamer(database_url=database_url)
    viewer = await connect(streamer.port)
    await shown(viewer, {"first": "Ada", "second": None})
    await streamer.wait_until_quiet()
    reads: list[bool] = []
    watcher = streamer.streamer.watcher
    real = watcher._read

    async def read(watched: Any, *, was_notified: bool, with_board: bool) -> None:
        reads.append(was_notified)
        await real(watched, was_notified=was_notified, with_board=with_board)

    monkeypatch.setattr(watcher, "_read", read)
    await name_users(database_url, first="Lovelace")
    await shown(viewer, {"first": "Lovelace", "second": None}, SOON_S)

    assert True not in reads


async def test_an_erased_name_leaves_the_board(
    start_streamer: StartStreamer, start_api: StartApi, connect: Connect, database_url: str
) -> None:
    await name_users(database_url, first="Ada", second="Bob")
    streamer = await start_streamer(database_url=database_url)
    client = await start_api(database_url=database_url, open=())
    viewer = await connect(streamer.port)
    async with listening(client) as events:
        for one in (viewer, events):
            await shown(one, {"first": "Ada", "second": "Bob"})

        await erase(database_url, "first")

        for one in (viewer, events):
            await shown(one, {"first": None, "second": "Bob"}, SOON_S)


async def test_an_erased_name_leaves_the_board_also_while_redis_is_away(
    start_streamer: StartStreamer,
    connect: Connect,
    database_url: str,
    make_proxy: MakeProxy,
    redis_url: str,
) -> None:
    await name_users(database_url, first="Ada")
    redis_proxy = await make_proxy(int(redis_url.rpartition(":")[2].partition("/")[0]))
    streamer = await start_streamer(database_url=database_url, url=redis_proxy.through(redis_url))
    viewer = await connect(streamer.port)
    await shown(viewer, {"first": "Ada", "second": None})
    redis_proxy.refuse()

    await erase(database_url, "first")

    await shown(viewer, {"first": None, "second": None}, 2 * SOON_S)


async def test_boards_are_not_delayed_while_the_database_does_not_answer(
    start_streamer: StartStreamer, connect: Connect, database_url: str, proxy: Proxy
) -> None:
    await name_users(database_url, first="Ada", third="Carl")
    streamer = await start_streamer(database_url=proxy.through(database_url))
    viewer = await connect(streamer.port)
    await shown(viewer, {"first": "Ada", "second": None})
    await streamer.wait_until_quiet()
    proxy.freeze()

    async with playing(streamer.settings) as submit:
        took_s: list[float] = []
        for user in ("third", "first", "third"):
            began_s = time.monotonic()
            await submit(user, 300)
            board = await viewer.next("leaderboard")
            took_s.append(time.monotonic() - began_s)
    assert names_in(board) == {"first": "Ada", "second": None, "third": None}
    assert max(took_s) < 1.0, "far below the time limit of a lookup"

    await proxy.restore()
    await shown(viewer, {"first": "Ada", "second": None, "third": "Carl"})


async def test_names_are_shown_again_after_the_database_was_away(
    start_streamer: StartStreamer,
    connect: Connect,
    database_url: str,
    proxy: Proxy,
    logged: list[tuple[str, str]],
) -> None:
    """A name that was changed while the announcement could not arrive is found."""
    await name_users(database_url, first="Ada")
    streamer = await start_streamer(database_url=proxy.through(database_url))
    viewer = await connect(streamer.port)
    await shown(viewer, {"first": "Ada", "second": None})
    proxy.refuse()
    await eventually_async(lambda: bool(logged))
    assert streamer.streamer.names.is_up == 0
    await name_users(database_url, first="Lovelace")
    assert viewer.messages[-1]["leaderboard"][0]["name"] == "Ada"

    await proxy.restore()

    await shown(viewer, {"first": "Lovelace", "second": None})
    await eventually_async(lambda: logged[-1][0] == "names_available")
    assert [event for event, _ in logged].count("names_available") == 1
    assert streamer.streamer.names.is_up == 1


async def test_an_old_name_is_not_shown_while_the_database_is_away(
    start_streamer: StartStreamer,
    connect: Connect,
    database_url: str,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may have been erased."""
    monkeypatch.setattr("scoreboard.broadcast.watcher.RECONCILE_S", 0.3)
    await name_users(database_url, first="Ada")
    streamer = await start_streamer(database_url=proxy.through(database_url))
    viewer = await connect(streamer.port)
    await shown(viewer, {"first": "Ada", "second": None})
    proxy.refuse()

    monkeypatch.setattr(name_cache, "KEPT_S", 0.0)

    await shown(viewer, {"first": None, "second": None}, 10.0)


async def test_without_a_database_viewers_get_ids(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    streamer = await start_streamer()
    viewer = await connect(streamer.port)

    assert names_in(await viewer.next()) == {"first": None, "second": None}
    assert streamer.streamer.names.known(["first"]) == {}


async def test_a_database_without_the_login_leaves_ids_and_is_logged_once(
    start_streamer: StartStreamer,
    connect: Connect,
    database_url: str,
    logged: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after an upgrade of the streamer before that of the database."""
    monkeypatch.setattr(name_cache, "RECONNECT_MOST_S", 0.1)
    tried: list[str] = []

    async def connect_(settings: Settings, *, name: str) -> Connection:
        tried.append(name)
        return await real(settings, name=name)

    real = pool.connect
    monkeypatch.setattr(pool, "connect", connect_)
    streamer = await start_streamer(database_url=_as_user(database_url, "scoreboard_streamer_a"))
    viewer = await connect(streamer.port)

    assert names_in(await viewer.next()) == {"first": None, "second": None}
    await eventually_async(lambda: len(tried) > 3)
    assert len(logged) == 1
    assert logged[0][0] == "names_unavailable"
    assert "scoreboard_streamer_a" in logged[0][1]
    assert math.isnan(streamer.streamer.names.is_up), "no alert compares so"


async def test_a_secret_that_does_not_exist_leaves_ids(
    database_url: str, tmp_path: Path, logged: list[tuple[str, str]]
) -> None:
    settings = load(
        {
            "REDIS_URL": "redis://unused",
            "DATABASE_URL": database_url,
            "SCOREBOARD_SECRETS": "file",
            "SCOREBOARD_DATABASE_SECRET": str(tmp_path / "none"),
        }
    )
    async with running(NameCache(settings, select=select_names)) as names:
        await eventually_async(lambda: bool(logged))

        assert names.known(["first"]) == {}
        assert [event for event, _ in logged] == ["names_unavailable"]


@pytest.mark.parametrize(
    ("variables", "has_names"),
    [
        ({}, False),
        ({"DATABASE_URL": "postgresql://host/scoreboard"}, True),
        # One file of settings for all services, as before the streamer had a login.
        ({"DATABASE_URL": "postgresql://host/scoreboard", "SCOREBOARD_SECRETS": "file"}, False),
        (
            {
                "DATABASE_URL": "postgresql://host/scoreboard",
                "SCOREBOARD_SECRETS": "file",
                "SCOREBOARD_DATABASE_SECRET": "/secrets/streamer/database",
            },
            True,
        ),
        ({"SCOREBOARD_DATABASE_SECRET": "/secrets/streamer/database"}, False),
    ],
)
def test_a_streamer_uses_a_database_that_it_has_a_login_of(
    variables: dict[str, str], has_names: bool
) -> None:
    assert has_database(load({"REDIS_URL": "redis://unused", **variables})) is has_names


def _as_user(url: str, user: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{user}:wrong@{rest.rpartition('@')[2]}"


async def test_a_database_before_the_announcements_is_read_every_minute(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name_cache, "FRESH_S", 0.1)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP FUNCTION announce_names CASCADE")
    await name_users(database_url, ada="Ada")
    async with running(NameCache(settings_of(database_url), select=select_names)) as names:
        await eventually_async(lambda: names.known(["ada"]) == {"ada": "Ada"})
        await name_users(database_url, ada="Lovelace")
        await eventually_async(lambda: names.known(["ada"]) == {"ada": "Lovelace"})


# Announcements


@asynccontextmanager
async def hearing(database_url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    connection = await psycopg.AsyncConnection.connect(database_url, autocommit=True)
    async with connection:
        await connection.execute(f"LISTEN {CHANNEL}".encode())
        yield connection


async def announced(connection: psycopg.AsyncConnection[Any]) -> list[str]:
    """Return what has been announced; the own announcement is the last one."""
    await connection.execute(f"NOTIFY {CHANNEL}, 'end'".encode())
    payloads: list[str] = []
    async for notice in connection.notifies(timeout=10):
        if notice.payload == "end":
            return payloads
        payloads.append(notice.payload)
    raise AssertionError("nothing was heard")


async def test_what_changes_a_name_is_announced(database_url: str) -> None:
    async with hearing(database_url) as connection:
        await name_users(database_url, ada="Ada")
        assert await announced(connection) == ['["ada"]']
        await name_users(database_url, ada="Ada")
        assert await announced(connection) == [], "it is the same name"
        async with writing(database_url) as writer:
            await upsert_user(writer, Profile("ada", email="ada@example.org"))
        assert await announced(connection) == [], "an address is not shown"
        async with writing(database_url) as writer:
            await upsert_user(writer, Profile("ada", metadata='{"team":"red"}'))
        assert await announced(connection) == ['["ada"]']
        await erase(database_url, "ada")
        assert await announced(connection) == ['["ada"]']
        with psycopg.connect(database_url) as direct:
            direct.execute("INSERT INTO users (id, external_id) VALUES (gen_random_uuid(), 'bob')")
            direct.execute(
                "INSERT INTO users (id, external_id, name) VALUES (gen_random_uuid(), 'eve', 'Eve')"
            )
        assert await announced(connection) == ['["eve"]']


@pytest.mark.parametrize(("users", "is_listed"), [(50, True), (51, False)])
async def test_the_ids_of_many_users_are_not_listed(
    database_url: str, users: int, is_listed: bool
) -> None:
    longest = [f"{number:0>128}" for number in range(users)]
    async with hearing(database_url) as connection:
        async with writing(database_url) as writer:
            await import_users(writer, [Profile(user, "x" * 200) for user in longest])
        (payload,) = await announced(connection)
    assert (payload == "*") is not is_listed
    assert len(payload) < 8000


@pytest.mark.slow
async def test_an_import_of_many_users_is_announced_once_and_renews_all_names(
    start_streamer: StartStreamer, connect: Connect, database_url: str
) -> None:
    await name_users(database_url, first="Ada", second="Bob")
    streamer = await start_streamer(database_url=database_url)
    viewer = await connect(streamer.port)
    await shown(viewer, {"first": "Ada", "second": "Bob"})
    count = 100_000
    users = [Profile(f"user-{number}", f"Name {number}") for number in range(count)]
    users += [Profile("first", "Lovelace"), Profile("second", "Babbage")]

    async with hearing(database_url) as connection:
        async with writing(database_url) as writer:
            assert (await import_users(writer, users)).written == count + 2
            await writer.commit()
            committed_s = time.monotonic()
            await shown(viewer, {"first": "Lovelace", "second": "Babbage"})
            assert time.monotonic() - committed_s < SOON_S
        assert await announced(connection) == ["*"]


# The cache


async def test_names_are_looked_up_together_and_told_once(database_url: str) -> None:
    users = {f"user-{number}": f"Name {number}" for number in range(20)}
    await name_users(database_url, **users)
    calls: list[int] = []

    async def select(connection: Connection, user_ids: Any) -> dict[str, PublicProfile]:
        calls.append(len(user_ids))
        return await select_names(connection, user_ids)

    told: list[Any] = []
    async with running(NameCache(settings_of(database_url), select=select)) as names:
        names.on_change(told.append)
        await eventually_async(lambda: told == [None])
        for _ in range(3):
            assert names.known(["unknown", *users]) == {}
        await eventually_async(lambda: len(told) == 2)

        assert calls == [21]
        assert told[1] == {"unknown", *users}, "somebody may show a name that was evicted"
        assert names.known(["unknown", *users]) == users
        await asyncio.sleep(0)
        assert calls == [21], "what is known is not asked for again"


async def test_made_up_users_cost_bounded_queries_and_memory(database_url: str) -> None:
    sizes: list[int] = []
    is_running = [0]

    async def select(connection: Connection, user_ids: Any) -> dict[str, PublicProfile]:
        assert not is_running[0], "one query at a time"
        is_running[0] += 1
        sizes.append(len(user_ids))
        try:
            return await select_names(connection, user_ids)
        finally:
            is_running[0] -= 1

    async with running(NameCache(settings_of(database_url), select=select)) as names:
        names.known(f"fake-{number}" for number in range(3 * NAMES_MAX))
        assert len(names._wanted) == NAMES_MAX
        await eventually_async(lambda: not names._wanted and not is_running[0])
        names.known(f"more-{number}" for number in range(NAMES_MAX))
        await eventually_async(lambda: not names._wanted and not is_running[0])

        assert max(sizes) == name_cache.LOOKUP_MAX
        assert len(names._known) == NAMES_MAX


async def test_a_name_that_is_shown_is_not_lost_when_it_is_evicted(database_url: str) -> None:
    await name_users(database_url, ada="Ada", bob="Bob")
    told: list[Any] = []
    async with running(NameCache(settings_of(database_url), select=select_names, most=1)) as names:
        await eventually_async(lambda: names.known(["ada"]) == {"ada": "Ada"})
        await eventually_async(lambda: names.known(["bob"]) == {"bob": "Bob"})
        names.on_change(told.append)
        assert names.known(["ada"], {"ada": "Ada"}) == {"ada": "Ada"}
        await eventually_async(lambda: told == [{"ada"}])
        await eventually_async(lambda: names.known(["bob"]) == {"bob": "Bob"})
        told.clear()

        await erase(database_url, "ada")

        await eventually_async(lambda: told == [{"ada"}])
        assert names.known(["ada"], {"ada": "Ada"}) == {"ada": "Ada"}, "not read yet"
        await eventually_async(lambda: len(told) == 2)
        assert names.known(["ada"], {"ada": "Ada"}) == {}


async def test_an_evicted_name_is_not_shown_when_the_database_was_away_for_long(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await name_users(database_url, ada="Ada", bob="Bob")
    async with running(NameCache(settings_of(database_url), select=select_names, most=1)) as names:
        await eventually_async(lambda: names.known(["bob"]) == {"bob": "Bob"})
    assert names.known(["ada"], {"ada": "Ada"}) == {"ada": "Ada"}
    monkeypatch.setattr(name_cache, "KEPT_S", 0.0)
    assert names.known(["ada"], {"ada": "Ada"}) == {}


async def test_announcements_that_wait_are_handled_together(database_url: str) -> None:
    told: list[Any] = []
    release = asyncio.Event()

    async def select(connection: Connection, user_ids: Any) -> dict[str, PublicProfile]:
        await release.wait()
        return await select_names(connection, user_ids)

    async with running(NameCache(settings_of(database_url), select=select)) as names:
        names.on_change(told.append)
        await eventually_async(lambda: told == [None])
        names.known(["ada"])
        await eventually_async(lambda: bool(names._in_flight))
        with psycopg.connect(database_url, autocommit=True) as connection:
            for payload in ("*", '["bob"]', "* ", '["eve"]'):
                connection.execute(f"NOTIFY {CHANNEL}, '{payload}'".encode())
        release.set()
        await eventually_async(lambda: len(told) == 3)
        assert told[1:] == [{"ada"}, None]
        assert names._resets == 2


async def test_a_change_during_a_lookup_is_looked_up_again(database_url: str) -> None:
    """The query may have read the row before the change."""
    await name_users(database_url, ada="Ada")
    is_slow = asyncio.Event()

    async def select(connection: Connection, user_ids: Any) -> dict[str, PublicProfile]:
        found = await select_names(connection, user_ids)
        if not is_slow.is_set():
            is_slow.set()
            await name_users(database_url, ada="Lovelace")
            await connection.execute("SELECT")  # receives the announcement
        return found

    async with running(NameCache(settings_of(database_url), select=select)) as names:
        names.known(["ada"])
        await eventually_async(lambda: names.known(["ada"]) == {"ada": "Lovelace"}, within_s=10)
