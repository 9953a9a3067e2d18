"""The life of a board by `scoreboard board`, from creation to deletion, without a restart.

Commands run in a thread beside an api on the same servers.
"""

import asyncio
import io
import json
import sys
import tomllib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import psycopg
import pytest
import redis

from cli import board_file
from scoreboard.ledger.boards import select_boards, select_boards_after, select_existing_boards
from scoreboard.ledger.pool import Connection
from scoreboard.ledger.positions import lock_partitions, select_board_positions
from scoreboard.model import Board, Layout, Limits, Partition, Rules
from scoreboard.recovery import reseed as reseeds
from scoreboard.runtime.settings import Settings
from scoreboard.store.keys import BOARDS, PartitionKeys
from tests.support.clients.commands import Command, Done, Run, with_database, with_store
from tests.support.clients.viewer import Connect, HttpResponse, StartStreamer
from tests.support.eventually import eventually_async
from tests.support.servers.api import LEADERBOARD_PATH, ApiClient, StartApi
from tests.support.servers.flushers import flushing

Handshake = Callable[..., Awaitable[HttpResponse]]

SERVED_S = 2.0
"""A change is applied within this time."""


@pytest.fixture
def server(redis_url: str) -> Iterator["redis.Redis[str]"]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


async def status_of_update(client: ApiClient, board: str, action: str = "win:1") -> int:
    return (await client.update("alice", action, board=board)).status_code


async def status_of_read(client: ApiClient, board: str) -> int:
    return (await client.get(LEADERBOARD_PATH, params={"board": board})).status_code


async def reaches(wanted: int, read: Callable[[], Awaitable[int]]) -> None:
    async def is_reached() -> bool:
        return await read() == wanted

    await eventually_async(is_reached, within_s=SERVED_S)


def audit(database_url: str) -> list[str]:
    with psycopg.connect(database_url) as connection:
        return [row[0] for row in connection.execute("SELECT action FROM audit_log ORDER BY id")]


async def test_a_board_is_served_from_creation_to_deletion(  # noqa: PLR0917 (fixtures)
    run: Command,
    start_api: StartApi,
    server: "redis.Redis[str]",
    settings: Settings,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (await run("board", "create", "main")).code == 0
    client = await start_api(open=())
    assert await status_of_update(client, "weekly") == 404
    assert (await run("board", "create", "weekly", "--partitions", "2")).code == 0
    await reaches(200, lambda: status_of_update(client, "weekly"))
    assert await status_of_read(client, "weekly") == 200

    assert (await run("board", "set", "weekly", "--private")).code == 0
    await reaches(401, lambda: status_of_read(client, "weekly"))
    assert (await run("board", "set", "weekly", "--public")).code == 0
    await reaches(200, lambda: status_of_read(client, "weekly"))

    refused = await run("board", "delete", "weekly", "--yes")
    assert refused.code == 5
    assert "board archive weekly" in refused.err
    assert (await run("board", "archive", "weekly")).code == 0
    assert await status_of_update(client, "weekly", "win:2") == 409
    assert await status_of_read(client, "weekly") == 200
    assert (await run("board", "unarchive", "weekly")).code == 0
    assert await status_of_update(client, "weekly", "win:3") == 200
    for word in ("was not", "was"):
        done = await run("board", "archive", "weekly")
        assert done.code == 0, word
    assert "weekly was archived" in done.err

    with monkeypatch.context() as patch:
        patch.setattr(reseeds, "STALL_S", 0.2)
        undrained = await run("board", "delete", "weekly", "--yes")
    assert undrained.code == 75
    assert "start the flusher" in undrained.err
    assert await status_of_read(client, "weekly") == 200
    own = msgspec.structs.replace(settings, boards=("weekly",))
    async with flushing(own):
        assert (await run("board", "delete", "weekly", "--yes")).code == 0
    await reaches(404, lambda: status_of_read(client, "weekly"))
    await reaches(404, lambda: status_of_update(client, "weekly"))
    assert server.keys("*weekly*") == []
    assert not server.hexists(BOARDS, "weekly")
    assert await status_of_update(client, "main") == 200

    again = await run("board", "delete", "weekly", "--yes")
    assert (again.code, "was deleted before" in again.err) == (0, True)
    for words in (("create", "weekly"), ("create", "weekly", "--if-missing"), ("show", "weekly")):
        taken = await run("board", *words)
        assert taken.code == 5
        assert "name cannot be used again" in taken.err
    assert (await run("reseed", "--board", "weekly")).code == 3
    listed = json.loads((await run("board", "list", "--json")).out)
    assert [one["name"] for one in listed] == ["main"]
    with psycopg.connect(database_url) as connection:
        kept = connection.execute("SELECT count(*) FROM score_events WHERE board = 'weekly'")
        assert kept.fetchone() == (2,)
    assert audit(database_url) == [
        *("board create", "reseed", "board create", "reseed"),
        *("board publish", "board publish", "board archive", "board unarchive", "board archive"),
        "board delete",
    ]


def test_a_rule_that_no_board_can_have_is_refused(command: Run) -> None:
    for words in (("--min", "5", "--max", "5"), ("--operator", "best", "--lowering", "players")):
        assert command("board", "create", "weekly", *words).code == 5
    assert command("board", "create", "weekly", "--operator", "sum").code == 2
    assert command("board", "create", "Weekly").code == 2
    assert command("board", "list").out == ""


def test_rules_are_stored_and_shown(command: Run, settings: Settings) -> None:
    text = "--operator best --order lowest --min 1 --max 99 --points stated --private"
    options = text.split()
    assert command("board", "create", "laps", *options).code == 0
    rules = Rules("best", "lowest", 1, 99, "nobody", "stated")
    laps = Board("laps", Layout(rules=rules), is_public=False)
    assert with_store(settings, lambda store: store.listed(["laps"])) == {"laps": laps}
    assert with_store(settings, lambda store: store.board("laps")) == laps
    shown = command("board", "show", "laps").out
    assert "operator\tbest\tthe score is the best value of all actions\n" in shown
    assert "order\tlowest\tthe lowest score is first\n" in shown
    one = json.loads(command("board", "show", "laps", "--json").out)
    assert one["layout"]["rules"]["score_max"] == 99
    line = "laps\topen\tno\t0\tbest, lowest first, 1 to 99, points stated\t1\t43200\t64\t\n"
    assert command("board", "list").out == line
    assert command("board", "show", "chess").code == 3


def test_without_redis_a_board_is_created_and_opened_later(
    command: Run, redis_url: str, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    made = command("board", "create", "weekly")
    assert made.code == 69
    assert "board create weekly --if-missing" in made.err
    assert command("board", "list").out.startswith("weekly\topen\tyes\t\t")
    assert command("board", "set", "weekly", "--private").code == 69
    monkeypatch.setenv("REDIS_URL", redis_url)
    assert "is now open" in command("board", "create", "weekly", "--if-missing").err
    assert "was not changed" in command("board", "create", "weekly", "--if-missing").err
    weekly = with_store(settings, lambda store: store.state(Partition("weekly")))
    assert weekly.is_open
    assert not weekly.is_public
    assert command("board", "set", "weekly", "--private").code == 0


def test_an_archived_board_is_reseeded_verified_and_shown_as_one(
    command: Run, settings: Settings
) -> None:
    command("board", "create", "weekly", "--partitions", "2")
    command("board", "archive", "weekly")
    assert command("reseed", "--board", "weekly", "--force", "--yes").code == 0
    for number in range(2):
        state = with_store(settings, lambda store, n=number: store.state(Partition("weekly", n)))
        assert state.is_archived
        assert state.epoch == 2
    assert command("verify", "--board", "weekly").code == 0
    assert (
        "is open; nothing was done"
        in command(*("reseed", "--board", "weekly", "--if-uninitialised")).err
    )
    assert "state\tarchived\tcan only be read\n" in command("board", "show", "weekly").out


def test_a_change_waits_for_another_operator_that_has_ended(
    command: Run, settings: Settings
) -> None:
    # PostgreSQL releases the lock a moment after a connection was closed; on a busy machine, later.
    command("board", "create", "weekly")

    async def has_tried(connection: Connection) -> bool:
        tried = await connection.execute(
            "SELECT 1 FROM pg_stat_activity"
            " WHERE query LIKE '%pg_try_advisory_lock%' AND pid <> pg_backend_pid()"
        )
        return bool(await tried.fetchall())

    async def change_meanwhile(connection: Connection) -> Done:
        await lock_partitions(connection, [Partition("weekly")])
        change = asyncio.create_task(asyncio.to_thread(command, "board", "archive", "weekly"))
        await eventually_async(lambda: has_tried(connection))
        await connection.close()
        return await change

    assert with_database(settings, change_meanwhile).code == 0


def test_a_change_does_not_wait_for_ever(command: Run, settings: Settings) -> None:
    command("board", "create", "weekly")

    async def change_meanwhile(connection: Connection) -> Done:
        await lock_partitions(connection, [Partition("weekly")])
        return await asyncio.to_thread(command, "board", "archive", "weekly")

    refused = with_database(settings, change_meanwhile)
    assert refused.code == 5
    assert "Another operator" in refused.err
    state = with_store(settings, lambda store: store.state(Partition("weekly")))
    assert not state.is_archived
    assert command("board", "archive", "weekly").code == 0


def test_a_default_board_is_not_deleted(command: Run) -> None:
    command("board", "create", "main")
    command("board", "archive", "main")
    refused = command("board", "delete", "main", "--yes")
    assert refused.code == 5
    assert "SCOREBOARD_BOARDS" in refused.err


def test_a_deletion_needs_the_name_or_yes(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    command("board", "create", "weekly")
    command("board", "archive", "weekly")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert "--yes" in command("board", "delete", "weekly").err

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("main\n"))
    assert "nothing was deleted" in command("board", "delete", "weekly").err
    monkeypatch.setattr(sys, "stdin", Terminal("weekly\n"))
    assert command("board", "delete", "weekly").code == 0


def test_an_interrupted_deletion_is_completed(
    command: Run, server: "redis.Redis[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    from scoreboard.store.store import Store

    command("board", "create", "weekly", "--partitions", "3")
    command("board", "archive", "weekly")
    remove = Store.remove
    calls: list[int] = []

    async def fail(self: Store, partition: Partition, layout: Layout) -> None:
        calls.append(partition.number)
        if len(calls) == 2:
            raise OSError("interrupted")
        await remove(self, partition, layout)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "remove", fail)
        assert command("board", "delete", "weekly", "--yes").code != 0
    assert server.keys("*weekly*") != []
    assert command("board", "delete", "weekly", "--yes").code == 0
    assert server.keys("*weekly*") == []


def test_creating_one_board_in_an_emptied_redis_lists_all(
    command: Run, server: "redis.Redis[str]"
) -> None:
    """A list with one board would say that the others do not exist."""
    for name in ("main", "weekly"):
        command("board", "create", name)
    server.flushall()
    command("board", "create", "daily")
    assert sorted(server.hkeys(BOARDS)) == ["daily", "main", "weekly"]


FILE = """\
[boards.main]
[boards.laps]
operator = "best"
order = "lowest"
min = 1
points = "stated"
public = false
[boards."a.b"]
archived = true
partitions = 2
"""


def test_a_file_is_applied_once(command: Run, tmp_path: Path, database_url: str) -> None:
    path = tmp_path / "boards.toml"
    path.write_text(FILE)
    command("board", "create", "main", "--private")
    plan = "laps\tcreate\na.b\tcreate\na.b\tarchive\n"
    plan = "main\tpublish\n" + plan
    before = audit(database_url)
    assert command("board", "apply", str(path), "--dry-run").out == plan
    assert audit(database_url) == before
    assert command("board", "apply", str(path)).out == plan
    assert command("board", "apply", str(path)).out == ""
    found = {one["name"]: one for one in json.loads(command("board", "list", "--json").out)}
    assert found["laps"]["layout"]["rules"]["operator"] == "best"
    assert (found["laps"]["is_public"], found["main"]["is_public"]) == (False, True)
    assert (found["a.b"]["state"], found["a.b"]["layout"]["partitions"]) == ("archived", 2)

    exported = tmp_path / "exported.toml"
    exported.write_text(command("board", "export").out)
    assert set(tomllib.loads(exported.read_text())["boards"]) == {"main", "laps", "a.b"}
    assert json.loads(command("board", "apply", str(exported), "--json").out) == []


def test_a_file_sets_limits_and_leaves_those_that_it_omits(
    command: Run, tmp_path: Path, redis_url: str
) -> None:
    path = tmp_path / "boards.toml"
    path.write_text(
        "[boards.new]\nmax_points_per_action = 5\n"
        "[boards.old]\nmax_points_per_window = 9\nwindow_seconds = 60\n"
    )
    command("board", "create", "old")
    command("board", "set", "old", "--max-points-per-action", "3")
    assert command("board", "apply", str(path)).out == "new\tcreate\nold\tlimit\n"
    assert command("board", "apply", str(path)).out == ""
    with redis.Redis.from_url(redis_url, decode_responses=True) as server:
        held = [
            server.hget(PartitionKeys(Partition(name)).meta, "limits") for name in ("new", "old")
        ]
    assert held == ["5:0:0", "3:9:60"]
    path.write_text("[boards.new]\n[boards.old]\nmax_points_per_action = 0\n")
    assert command("board", "apply", str(path)).out == "old\tlimit\n"
    [new, old] = json.loads(command("board", "list", "--json").out)
    assert new["limits"] == {"per_action": 5, "per_window": 0, "window_s": 0}
    assert old["limits"] == {"per_action": 0, "per_window": 9, "window_s": 60}


def test_an_interrupted_application_is_completed(
    command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_url: str
) -> None:
    path = tmp_path / "boards.toml"
    path.write_text("[boards.weekly]\n[boards.daily]\n")
    with monkeypatch.context() as patch:
        patch.setattr("cli.commands.board.open_new_board", _fail)
        assert command("board", "apply", str(path)).code != 0
    assert command("board", "apply", str(path)).out == "daily\tcreate\nweekly\topen\n"
    assert command("board", "apply", str(path)).out == ""


async def _fail(*_arguments: object, **_named: object) -> bool:
    raise OSError("interrupted")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[boards.laps]\noperator = "add"\n', ["laps", "operator is best"]),
        ("[boards.laps]\nmin = 2\n", ["laps", "operator is best"]),
        ('[boards.laps]\noperator = "best"\nmax = 5\n', ["laps", "max is"]),
        ('[boards.laps]\noperator = "best"\npartitions = 2\n', ["laps", "partitions is 1"]),
        ("[boards.x]\nmin = -1\n", ["Board x"]),
        ("[boards.x]\nmin = 9\nmax = 9\n", ["Board x", "min"]),
        ("[boards.x]\npartitions = 257\n", ["Board x"]),
        ("[boards.x]\npartitions = true\n", ["Board x", "partitions"]),
        ("[boards.x]\ncolour = 1\n", ["Board x", "colour"]),
        ("[boards.x]\nmax_points_per_action = -1\n", ["Board x", "points of a limit"]),
        ("[boards.x]\nmax_points_per_window = 5\n", ["Board x", "length of the window"]),
        (
            '[boards.x]\noperator = "best"\nmax_points_per_window = 5\nwindow_seconds = 60\n',
            ["add"],
        ),
        ("[boards.X]\n", ["Board X"]),
        ("boards = 1\n", ["boards"]),
        ("[board.x]\n", ["board"]),
        ("[boards.x\n", ["not TOML"]),
    ],
    ids=str,
)
def test_a_file_that_cannot_be_applied_changes_nothing(
    command: Run, tmp_path: Path, text: str, words: list[str], database_url: str
) -> None:
    path = tmp_path / "boards.toml"
    path.write_text("[boards.new]\n" + text if text.startswith("[boards") else text)
    command("board", "create", "laps", "--operator", "best")
    before = audit(database_url)
    refused = command("board", "apply", str(path))
    assert refused.code == 5
    assert len(refused.err.splitlines()[1:]) == 1
    assert all(word in refused.err for word in words), refused.err
    assert audit(database_url) == before


def test_every_board_survives_the_way_through_a_file(tmp_path: Path) -> None:
    boards = [
        Board("main"),
        Board("a.b_c-9", Layout(3, 60, 4), is_public=False, state="archived"),
        Board("laps", Layout(rules=Rules("best", "lowest", 1, 99, "nobody", "stated"))),
        Board("-", Layout(rules=Rules(lowering="players")), limits=Limits(7, 50, 3600)),
    ]
    path = tmp_path / "boards.toml"
    path.write_text("\n".join(board_file.write_boards(boards)))
    assert board_file.read_boards(path) == {board.name: board for board in boards}


async def test_viewers_follow_a_board_from_its_creation_to_its_deletion(
    run: Command, start_streamer: StartStreamer, connect: Connect, handshake: Handshake
) -> None:
    assert (await run("board", "create", "main")).code == 0
    running = await start_streamer(opened=False)
    await eventually_async(lambda: running.streamer.watcher.is_ready)
    path = "/ws/scoreboard?board=weekly"

    async def status() -> int:
        return (await handshake(running.port, path)).status

    assert await status() == 404
    assert (await run("board", "create", "weekly", "--partitions", "2")).code == 0
    await reaches(101, status)
    viewer = await connect(running.port, path)
    assert (await viewer.next("leaderboard"))["board"] == "weekly"
    await eventually_async(lambda: running.streamer.watcher.hears("weekly", 2))

    assert (await run("board", "set", "weekly", "--private")).code == 0
    assert await viewer.closed(SERVED_S) == 4403
    assert await status() == 401
    assert (await run("board", "set", "weekly", "--public")).code == 0
    await reaches(101, status)

    viewer = await connect(running.port, path)
    assert (await run("board", "archive", "weekly")).code == 0
    late = await connect(running.port, path)
    for one in (viewer, late):
        assert (await one.next("leaderboard"))["board"] == "weekly"
    assert (await run("board", "delete", "weekly", "--yes")).code == 0
    for one in (viewer, late):
        assert await one.closed() == 4404
        assert one.messages[-1]["type"] == "bye"
    assert await status() == 404


async def test_an_update_of_a_new_board_is_committed_without_a_restart(
    run: Command, start_api: StartApi, settings: Settings, database_url: str
) -> None:
    await run("board", "create", "main")
    async with flushing(settings):
        client = await start_api(open=(), acknowledge="committed", database_url=database_url)
        assert await status_of_update(client, "weekly") == 404
        await run("board", "create", "weekly")
        await reaches(200, lambda: status_of_update(client, "weekly"))
        with psycopg.connect(database_url) as connection:
            kept = connection.execute("SELECT score FROM scores WHERE board = 'weekly'")
            assert kept.fetchone() == (10,)


def test_no_query_for_boards_returns_a_deleted_one(command: Run, settings: Settings) -> None:
    """The flusher would otherwise search it for work and verify it."""
    for words in (("create", "weekly"), ("archive", "weekly"), ("delete", "weekly", "--yes")):
        assert command("board", *words).code == 0

    async def read(connection: Connection) -> list[object]:
        return [
            await select_boards(connection),
            await select_boards_after(connection, after="", limit=10),
            await select_existing_boards(connection, ["weekly"]),
            await select_board_positions(connection, after="", limit=10),
        ]

    assert not any(with_database(settings, read))
