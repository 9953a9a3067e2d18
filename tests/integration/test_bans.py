"""Banned users: off the board at once, refused, and known to every check and repair."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import msgspec
import pytest
import redis

from api.metrics import UPDATES
from scoreboard.errors import Banned, OperatorMistake, RedisUnavailable, UnknownUser
from scoreboard.model import Action, Board, Layout, Partition, partition_of
from scoreboard.moderation import acts as acts_module
from scoreboard.moderation.acts import Done
from scoreboard.moderation.plans import BanChange, Correction, Undo, Void
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.client import make_client
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.partitions import Partitions
from tests.support.clients.commands import Run
from tests.support.clients.viewer import Connect, StartStreamer
from tests.support.eventually import eventually_async
from tests.support.servers.api import StartApi
from tests.support.servers.flushers import act, flushing, make_board, query, store_of
from tests.support.servers.stores import OwnValkey

from .test_acts import PLAYED, World, flush, play

pytestmark = pytest.mark.slow

BAN = BanChange("bob", "ban")
UNBAN = BanChange("bob", "unban")


@pytest.fixture(params=[1, 3], ids=["one partition", "three partitions"])
async def world(request: pytest.FixtureRequest, settings: Settings) -> AsyncIterator[World]:
    """Yield a board on which bob reached 20 before carol."""
    board = await make_board(settings, Board(layout=Layout(partitions=request.param)))
    async with flushing(settings):
        world = World(settings, board)
        await world.play(*PLAYED)
        yield world


def home(world: World, user: str) -> PartitionKeys:
    return PartitionKeys(Partition("main", partition_of(user, world.board.layout.partitions)))


async def ranking(world: World) -> list[str]:
    async with store_of(world.settings) as store:
        return [row.user_id for row in (await store.leaderboard("main", limit=10)).rows]


async def submit(world: World, *action: Any) -> Any:
    [result] = await act(world.settings, Action(*action))
    return result


async def positions(store: Partitions) -> list[tuple[int, int]]:
    """Return epoch and seq of each partition; the flusher may still commit."""
    return [(state.epoch, state.seq) for state in (await store.states("main")).values()]


async def test_a_banned_user_leaves_the_board_and_cannot_score(world: World) -> None:
    client = make_client(world.settings, name="test")
    async with client.pubsub(ignore_subscribe_messages=True) as listener:
        await listener.subscribe(home(world, "bob").changes)
        await world.perform(BAN)

        async def is_announced() -> bool:
            return await listener.get_message(timeout=0.1) is not None

        await eventually_async(is_announced, within_s=1)
    await client.aclose()

    assert "bob" not in await ranking(world)
    async with store_of(world.settings) as store:
        with pytest.raises(UnknownUser):
            await store.standing("main", "bob")
        before = await positions(store)
        assert isinstance(await submit(world, "bob", "win:2", 5), Banned)
        assert await positions(store) == before, "a refused action leaves no trace"
    receipt = await submit(world, "bob", "win:1", 20)
    assert (receipt.score, receipt.replayed) == (20, True)
    assert not isinstance(await submit(world, "carol", "win:2", 1), BaseException)
    [(score,)] = query(
        world.settings,
        "SELECT s.score FROM scores s JOIN users u ON u.id = s.user_id WHERE external_id = 'bob'",
    )
    assert score == 20
    await world.check()


async def test_viewers_see_a_ban_and_its_end(
    world: World, start_streamer: StartStreamer, connect: Connect
) -> None:
    """The board changes while no score does: viewers ignore a position that they have."""
    running = await start_streamer(opened=False)
    await eventually_async(lambda: running.streamer.watcher.is_ready)
    viewer = await connect(running.port)
    await viewer.next("leaderboard")
    for request, is_shown in ((BAN, False), (UNBAN, True)):
        await world.perform(request)
        async with asyncio.timeout(2):
            while True:
                board = await viewer.next("leaderboard")
                if ("bob" in {row["userId"] for row in board["leaderboard"]}) == is_shown:
                    break
    await world.check()


async def test_an_unbanned_user_has_its_place_among_equals(world: World) -> None:
    before = await ranking(world)
    await world.perform(BAN)

    await world.perform(UNBAN)

    assert await ranking(world) == before
    assert not isinstance(await submit(world, "bob", "win:2", 5), BaseException)
    assert await world.score("bob") == 25
    await world.check()


async def test_a_ban_is_undone_by_an_unban_once(world: World) -> None:
    ban = await world.perform(BAN)
    with pytest.raises(OperatorMistake, match=f"by act {ban.act_id}"):
        await world.perform(BAN)

    unban = await world.perform(Undo(ban.act_id))

    assert await world.score("bob") == 20
    with pytest.raises(OperatorMistake, match=f"undone by act {unban.act_id}"):
        await world.perform(Undo(ban.act_id))
    with pytest.raises(OperatorMistake, match="is not banned"):
        await world.perform(UNBAN)
    again = await world.perform(BAN)
    ended = await world.perform(UNBAN)
    with pytest.raises(OperatorMistake, match="is not banned"):
        await world.perform(Undo(again.act_id))
    await world.perform(Undo(ended.act_id))
    assert await world.score("bob") is None
    actions = query(world.settings, "SELECT action FROM audit_log WHERE action LIKE 'act%%'")
    assert [name for (name,) in actions] == ["act ban", "act unban"] * 2 + ["act ban"]
    await world.check()


async def test_acts_on_a_banned_user_change_its_score_off_the_board(world: World) -> None:
    await world.perform(BAN)

    assert (await world.perform(Correction("bob", 7))).score == 27
    voided = await world.perform(Void("bob", "win:1"))
    assert voided.score == 7
    assert "bob" not in await ranking(world)
    await world.check()

    await world.perform(UNBAN)
    assert await world.score("bob") == 7
    assert (await world.perform(Undo(voided.act_id))).score == 27
    await world.check()


async def test_a_ban_survives_reseeds_and_an_emptied_redis(world: World) -> None:
    await world.perform(BAN)
    await world.perform(BanChange("nobody", "ban"))
    await world.reseed()
    assert "bob" not in await ranking(world)
    await world.check()
    client = make_client(world.settings, name="test")
    await client.flushdb()
    await client.aclose()

    await world.reseed()

    assert "bob" not in await ranking(world)
    assert isinstance(await submit(world, "bob", "win:2", 5), Banned)
    assert isinstance(await submit(world, "nobody", "win:1", 5), Banned)
    await world.check()
    await world.perform(BanChange("nobody", "unban"))
    await world.perform(UNBAN)
    await world.reseed()
    assert await world.score("bob") == 20
    assert (await submit(world, "nobody", "win:1", 5)).score == 5
    await world.check()


async def test_a_ban_moves_with_the_user_to_another_partition(settings: Settings) -> None:
    world = World(settings, await make_board(settings))
    async with flushing(settings):
        await world.play(*PLAYED)
        await world.perform(BAN)
        for partitions in (3, 1):
            query(settings, f"UPDATE boards SET partitions = {partitions}")
            world.board = Board(layout=Layout(partitions=partitions))
            await world.reseed()
            assert sorted(await ranking(world)) == ["alice", "carol"]
            assert isinstance(await submit(world, "bob", "win:2", 5), Banned)
            client = make_client(settings, name="test")
            assert len([key async for key in client.scan_iter("*:banned")]) == 1
            await client.aclose()
            await world.check()


async def test_a_late_duplicate_of_a_banned_user_keeps_it_off_the_board(world: World) -> None:
    """The action was applied again before the ban, and is corrected after it."""
    client = make_client(world.settings, name="test")
    await client.delete(*[key async for key in client.scan_iter("*:seen:*")])
    await client.aclose()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flusher.partition.correct_late_duplicates", _later)
        assert not isinstance(await submit(world, "bob", "win:1", 20), BaseException)
        await world.drained()
        await world.perform(BAN)
    await world.check()
    assert "bob" not in await ranking(world)
    await world.perform(UNBAN)
    assert await world.score("bob") == 20


async def _later(*_: object) -> bool:
    return False


async def test_a_ban_that_did_not_reach_redis_is_completed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(*_: object) -> None:
        raise RedisUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(acts_module, "correct_users", lost)
        with pytest.raises(RedisUnavailable):
            await world.perform(BAN)
    assert "bob" in await ranking(world)
    [(act_id,)] = query(world.settings, "SELECT id FROM acts")

    await world.moderate(lambda moderator: moderator.resume(act_id))

    assert "bob" not in await ranking(world)
    await world.check()


async def test_a_ban_that_another_server_does_not_know_is_copied(
    settings: Settings, own_valkey: OwnValkey
) -> None:
    server = own_valkey()
    settings = msgspec.structs.replace(settings, redis_url=Secret(server.url))
    world = World(settings, await make_board(settings, Board()))
    keys = home(world, "bob")
    async with flushing(settings):
        await world.play(*PLAYED)
        with redis.Redis.from_url(server.url) as client:
            place = client.zscore(keys.board, "bob")
            await world.perform(BAN)
            # As a replica without it; a start changes the replication id, as a promotion does.
            client.hdel(keys.banned, "bob")
            client.zadd(keys.board, {"bob": place})
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)

        async def is_copied() -> bool:
            with suppress(RedisUnavailable):
                return "bob" not in await ranking(world)
            return False

        await eventually_async(is_copied)
        await world.check()


async def test_two_operators_who_ban_and_unban_leave_one_state(world: World) -> None:
    requests = [BAN, UNBAN] * 3
    results = await asyncio.gather(
        *(world.perform(one) for one in requests), return_exceptions=True
    )

    assert all(isinstance(one, Done | OperatorMistake) for one in results), results
    is_banned = bool(query(world.settings, "SELECT act_id FROM bans"))
    assert ("bob" not in await ranking(world)) == is_banned
    await world.check()


async def test_updates_during_bans_are_counted_or_refused_whole(world: World) -> None:
    counted: list[str] = []

    async def score() -> None:
        for number in range(60):
            result = await submit(world, "bob", f"more:{number}", 1)
            if not isinstance(result, BaseException):
                counted.append(f"more:{number}")
            else:
                assert isinstance(result, Banned)

    async def moderate() -> None:
        for _ in range(4):
            await world.perform(BAN)
            await world.perform(UNBAN)

    await asyncio.gather(score(), moderate())
    await world.check()
    ledger = query(world.settings, "SELECT action_id FROM score_events WHERE kind = 'more'")
    assert sorted(action for (action,) in ledger) == sorted(counted)
    assert await world.score("bob") == 20 + len(counted)


def test_the_commands(command: Run, settings: Settings) -> None:
    play(settings)
    assert command("board", "create", "second").code == 0
    assert command("reseed", "--board", "second").code in {0, 75}
    why = ("--reason", "bot")

    dry = command("user", "ban", "bob", *why, "--dry-run")
    assert (dry.code, "rank 2 → none" in dry.err) == (0, True), dry.err
    assert command("user", "ban", "bob", *why).code == 5, "it needs --yes without a terminal"
    assert command("user", "unban", "bob", *why, "--yes").code == 5
    assert command("user", "ban", "bob", *why, "--yes").code == 0
    assert command("user", "ban", "bob", *why, "--yes").code == 5
    shown = json.loads(command("user", "show", "bob", "--json").out)
    assert (shown["rank"], shown["committedScore"]) == (None, 20)
    assert shown["bannedBy"]
    assert command("user", "ban", "bob", *why, "--all-boards", "--board", "main").code == 2

    every = command("user", "ban", "bob", *why, "--all-boards", "--yes", "--json")

    assert every.code == 0, every.err
    acts = {one["board"]: one["act"] for one in json.loads(every.out)}
    assert acts["main"] is None
    assert acts["second"]
    back = command("user", "unban", "bob", *why, "--all-boards", "--yes")
    assert back.code == 0, back.err
    assert query(settings, "SELECT count(*) FROM bans") == [(0,)]
    flush(settings)
    assert command("verify", "--full").code == 0


def test_repair_removes_a_banned_user_who_is_on_the_board(
    command: Run, settings: Settings, redis_url: str
) -> None:
    """As after a failover to a replica that had not received the ban."""
    play(settings)
    assert command("user", "ban", "bob", "--reason", "bot", "--yes").code == 0
    keys = PartitionKeys(Partition("main"))

    async def forget() -> None:
        client = make_client(settings, name="test")
        await client.delete(keys.banned)
        await client.zadd(keys.board, {"bob": 20 * 2**21})
        await client.aclose()

    flush(settings)
    asyncio.run(forget())
    found = command("verify", "--full")
    assert (found.code, "bob" in found.out) == (1, True)

    assert command("repair", "--yes").code in {0, 1}, "1: the order is settled by the repair"

    flush(settings)
    assert command("verify", "--full").code == 0
    assert json.loads(command("user", "show", "bob", "--json").out)["rank"] is None


async def test_the_updates_of_a_banned_user_are_refused_and_counted_as_such(
    start_api: StartApi, redis_url: str
) -> None:
    client = await start_api()
    with redis.Redis.from_url(redis_url) as server:
        server.hset(PartitionKeys(Partition("main")).banned, "bob", "-1")
    before = dict(UPDATES)

    answers = [
        await client.update("bob", "win:1", headers=client.bearer("bob")),
        await client.update("bob", "win:2", headers=client.bearer("server", "update:score:any")),
    ]

    for answer in answers:
        assert answer.status_code == 403
        assert answer.json()["type"].endswith("/banned")
    counted = {name: UPDATES[name] - before[name] for name in UPDATES}
    assert counted == dict.fromkeys(UPDATES, 0) | {"banned": 2}
