"""Places of users, pushed to the viewers that watch them: right, at once, and only if changed.

A place is right if it is what the whole board says at that moment: rank, score, the rows beside it
and the distances. Two seconds after the last change every viewer has the right place.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import msgspec
import pytest
import redis.asyncio as aioredis

from scoreboard.model import SLOT_COUNT, Board, Layout, Partition, Row, Rules, Window, pack
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.runtime.telemetry import REGISTRY
from scoreboard.seasons import Season
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.store import Store
from streamer.fanout.places import WatchedPlaces, WatchedUser
from tests.support.clients.viewer import (
    PATH,
    PING,
    PONG,
    TEXT,
    Closed,
    Connect,
    RawViewer,
    RunningStreamer,
    StartStreamer,
    masked_frame,
    playing,
)
from tests.support.data.boards import open_board
from tests.support.eventually import eventually_async
from tests.support.fakes.proxy import MakeProxy
from tests.support.fakes.tokens import MakeToken

KEYS = PartitionKeys(Partition("main"))
TWENTY = [(f"user{number:02}", 1000 - 10 * number) for number in range(1, 21)]
"""Ranks 1 to 20, ten points apart."""

Turns = Callable[[], Awaitable[None]]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.fanout.turns.PERIOD_S", 0.1)
    monkeypatch.setattr("streamer.fanout.place_sampler.NAMES_S", 0.1)


@pytest.fixture
def no_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.fanout.turns.PERIOD_S", 3600.0)


@pytest.fixture
def turns() -> Turns:
    """Return a function that waits until every watched user has had a turn, and what it sends."""

    def count() -> float:
        return metric("ws_place_turns_total")

    async def wait() -> None:
        # The second turn of a user comes after what its first one has read.
        last = count() + 2 * metric("ws_watched_users") + 1
        await eventually_async(lambda: count() >= last)

    return wait


def metric(name: str) -> float:
    return REGISTRY.get_sample_value(f"scoreboard_{name}") or 0.0


async def watch(viewer: RawViewer, *user_ids: str) -> None:
    await viewer.send_json({"type": "watch", "userIds": list(user_ids)})


async def place_where(viewer: RawViewer, user_id: str, **fields: Any) -> dict[str, Any]:
    """Read until a place of a user has these fields."""
    async with asyncio.timeout(15):
        while True:
            place = await viewer.next("place")
            found = {name: place.get(name) for name in fields}
            if place["userId"] == user_id and found == fields:
                return place


def places(viewer: RawViewer, user_id: str) -> list[dict[str, Any]]:
    return [one for one in viewer.messages if one["type"] == "place" and one["userId"] == user_id]


async def read_all(viewer: RawViewer) -> None:
    """Read what has arrived, and what a sync answers."""
    await viewer.send_json({"type": "sync"})
    await viewer.next("leaderboard")


def watched(running: RunningStreamer) -> dict[str, set[str]]:
    boards = running.streamer.manager.places.boards
    return {name: set(board.users) for name, board in boards.items()}


def expected(rows: Sequence[Row], user_id: str) -> dict[str, Any]:
    """Return what a place says of a user, from the rows of the whole board."""
    at = next((index for index, row in enumerate(rows) if row.user_id == user_id), None)
    told: dict[str, Any] = {"userId": user_id, "total": len(rows)}
    if at is None:
        return told | {"rank": None, "score": None, "above": [], "below": []}
    shown = [{"rank": one.rank, "userId": one.user_id, "score": one.score} for one in rows]
    told |= {"rank": at + 1, "score": rows[at].score}
    told |= {"above": shown[max(0, at - 2) : at], "below": shown[at + 1 : at + 3]}
    if at:
        told["toNext"] = abs(rows[at - 1].score - rows[at].score)
    if at >= 10:
        told["toTop"] = abs(rows[9].score - rows[at].score)
    return told


def told(place: dict[str, Any]) -> dict[str, Any]:
    fields = {"userId", "total", "rank", "score", "above", "below", "toNext", "toTop"}
    return {name: place[name] for name in fields & place.keys()}


async def rows_of(store: Store, board: str = "main") -> tuple[Row, ...]:
    return (await store.leaderboard(board, limit=1000)).rows


@pytest.mark.usefixtures("no_turns")
async def test_the_user_of_a_token_gets_its_place_at_once_and_without_a_message(
    start_streamer: StartStreamer, connect: Connect, make_token: MakeToken
) -> None:
    running = await start_streamer(scores=TWENTY)
    began_s = time.monotonic()
    viewer = await connect(running.port, token=make_token("user12"))
    assert (await viewer.next())["type"] == "leaderboard"

    place = await viewer.next()

    assert time.monotonic() - began_s < 2
    assert place["type"] == "place"
    assert place["board"] == "main"
    assert told(place) == expected(await rows_of(running.store), "user12")
    assert (place["toNext"], place["toTop"]) == (10, 20)
    assert [row["userId"] for row in place["above"]] == ["user10", "user11"]


@pytest.mark.usefixtures("quick")
async def test_changes_of_the_score_and_of_neighbours_and_the_way_into_the_top_are_sent(
    start_streamer: StartStreamer, connect: Connect, make_token: MakeToken
) -> None:
    running = await start_streamer(scores=TWENTY)
    viewer = await connect(running.port, token=make_token("user12"))
    await place_where(viewer, "user12", rank=12)
    async with playing(running.settings) as submit:
        await submit("user12", 3)
        place = await place_where(viewer, "user12", score=883)
        assert (place["rank"], place["toNext"], place["toTop"]) == (12, 7, 17)

        await submit("user11", 4)
        place = await place_where(viewer, "user12", toNext=11)
        assert (place["rank"], place["score"]) == (12, 883)

        await submit("user14", 100)
        place = await place_where(viewer, "user12", rank=13)
        # user14 passed everyone up to rank 4, so rank 10 is user09 now.
        assert place["toTop"] == 910 - 883

        await submit("user12", 60)
        place = await place_where(viewer, "user12", rank=7)
    assert "toTop" not in place
    assert told(place) == expected(await rows_of(running.store), "user12")
    got = [(one["epoch"], one["seq"]) for one in places(viewer, "user12")]
    assert got == sorted(got)


@pytest.mark.usefixtures("quick")
async def test_a_place_that_did_not_change_is_not_sent_again(
    start_streamer: StartStreamer, connect: Connect, make_token: MakeToken, turns: Turns
) -> None:
    running = await start_streamer(scores=TWENTY)
    viewer = await connect(running.port, token=make_token("user02"))
    await place_where(viewer, "user02", rank=2)
    await turns()
    read = metric("ws_places_read_total")
    await turns()
    assert metric("ws_places_read_total") == read, "the board did not change"

    async with playing(running.settings) as submit:
        await submit("user20", 1)
    await turns()
    await read_all(viewer)

    assert metric("ws_places_read_total") == read + 1, "the board changed once"
    assert len(places(viewer, "user02")) == 1


@pytest.mark.usefixtures("quick")
async def test_the_number_of_users_alone_is_sent_when_it_moved_by_more_than_one_percent(
    start_streamer: StartStreamer, connect: Connect, make_token: MakeToken, turns: Turns
) -> None:
    scores = [(f"user{number:04}", 10_000 - number) for number in range(200)]
    running = await start_streamer(scores=scores)
    viewer = await connect(running.port, token=make_token("user0001"))
    await place_where(viewer, "user0001", total=200)
    async with playing(running.settings) as submit:
        for number in range(2):
            await submit(f"new{number}", 1)
        await turns()
        await read_all(viewer)
        assert len(places(viewer, "user0001")) == 1
        await submit("new2", 1)
        await place_where(viewer, "user0001", total=203)


@pytest.mark.usefixtures("quick")
async def test_a_user_without_a_score_has_no_rank_until_it_gets_one(
    start_streamer: StartStreamer, connect: Connect, make_token: MakeToken
) -> None:
    running = await start_streamer(scores=TWENTY)
    viewer = await connect(running.port, token=make_token("newcomer"))
    place = await viewer.next("place")
    assert told(place) == expected(await rows_of(running.store), "newcomer")
    assert place["rank"] is None

    async with playing(running.settings) as submit:
        await submit("newcomer", 815)
        place = await place_where(viewer, "newcomer", score=815)
    assert told(place) == expected(await rows_of(running.store), "newcomer")


@pytest.mark.usefixtures("quick")
async def test_users_are_watched_by_message_replaced_and_stopped(
    start_streamer: StartStreamer, connect: Connect, turns: Turns
) -> None:
    running = await start_streamer(scores=TWENTY)
    viewer = await connect(running.port)
    await watch(viewer, "user05", "user15", "nobody", "user05")
    for user_id, rank in (("user05", 5), ("user15", 15), ("nobody", None)):
        await place_where(viewer, user_id, rank=rank)
    assert watched(running) == {"main": {"user05", "user15", "nobody"}}

    await watch(viewer, "user15", "user16")
    await place_where(viewer, "user15", rank=15)  # each message is answered for every id
    await place_where(viewer, "user16", rank=16)
    assert watched(running) == {"main": {"user15", "user16"}}

    await watch(viewer)
    await eventually_async(lambda: not watched(running))
    async with playing(running.settings) as submit:
        await submit("user16", 1)
    other = await connect(running.port)
    await watch(other, "user20")
    await turns()
    await read_all(viewer)
    assert [len(places(viewer, user_id)) for user_id in ("user05", "user15", "user16")] == [1, 2, 1]


async def test_a_message_with_unusable_ids_is_refused_and_changes_nothing(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer(scores=TWENTY, viewer_mistakes=10)
    viewer = await connect(running.port)
    await watch(viewer, "user05")
    await place_where(viewer, "user05", rank=5)
    refused: list[Any] = [
        [f"user{number}" for number in range(6)],
        ["with space"],
        [""],
        ["x" * 129],
        [7],
        "user05",
        None,
    ]
    for user_ids in refused:
        await viewer.send_json({"type": "watch", "userIds": user_ids})
        assert (await viewer.next("error"))["code"] == "malformed"
    assert watched(running) == {"main": {"user05"}}


async def test_the_number_of_watched_users_is_limited(
    start_streamer: StartStreamer, connect: Connect, make_token: MakeToken
) -> None:
    running = await start_streamer(scores=TWENTY, watched_users=6)
    first, second = await connect(running.port), await connect(running.port)
    await watch(first, "user01", "user02")
    await watch(second, "user02", "user03")  # three different ones: half of the limit
    await place_where(second, "user03", rank=3)

    await watch(second, "user02", "user03", "user04")
    assert (await second.next("error"))["code"] == "too-many-watched"
    assert watched(running) == {"main": {"user01", "user02", "user03"}}
    await watch(second, "user02", "user04")  # one for another
    await place_where(second, "user04", rank=4)

    own = await connect(running.port, token=make_token("user09"))
    await place_where(own, "user09", rank=9)


async def test_a_viewer_that_could_not_watch_itself_does_when_there_is_room(
    start_streamer: StartStreamer, connect: Connect, make_token: MakeToken
) -> None:
    running = await start_streamer(scores=TWENTY, watched_users=1, ping_s=0.5)
    first = await connect(running.port, token=make_token("user01"))
    await place_where(first, "user01", rank=1)
    refused = metric("ws_watches_refused_total")
    late = await connect(running.port, token=make_token("user09"))
    await late.next("leaderboard")
    await read_all(late)
    assert [one["type"] for one in late.messages] == ["leaderboard", "leaderboard"]
    assert metric("ws_watches_refused_total") == refused + 1

    first.close()

    await place_where(late, "user09", rank=9)


async def test_of_messages_within_a_second_the_newest_waits(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer(scores=TWENTY)
    viewer = await connect(running.port)
    await watch(viewer, "user01")
    await place_where(viewer, "user01", rank=1)
    began_s = time.monotonic()
    await watch(viewer, "user02")
    await watch(viewer, "user03")
    await place_where(viewer, "user03", rank=3)
    assert time.monotonic() - began_s > 0.5
    assert watched(running) == {"main": {"user03"}}
    assert not places(viewer, "user02")
    await watch(viewer, "user04")
    viewer.close()
    await running.wait_until_empty()
    assert watched(running) == {}


@pytest.mark.usefixtures("quick")
async def test_nothing_is_kept_for_viewers_that_left(
    start_streamer: StartStreamer, connect: Connect, make_token: MakeToken
) -> None:
    running = await start_streamer(scores=TWENTY)
    viewers = [await connect(running.port, token=make_token("user03")) for _ in range(3)]
    viewers += [await connect(running.port, token=make_token("user04"))]
    for viewer in viewers:
        await viewer.next("place")
    viewers[0].close()
    viewers[1].reset()
    await eventually_async(lambda: running.viewers == 2)
    assert watched(running) == {"main": {"user03", "user04"}}
    for viewer in viewers[2:]:
        viewer.close()
    await running.wait_until_empty()
    places = running.streamer.manager.places
    assert (places.boards, places.count, places._new) == ({}, 0, {})


@pytest.mark.usefixtures("quick")
async def test_viewers_of_the_same_user_cost_one_read(
    start_streamer: StartStreamer, connect: Connect, make_token: MakeToken, turns: Turns
) -> None:
    running = await start_streamer(scores=TWENTY, viewers_per_subject=50)
    viewers = [await connect(running.port, token=make_token("user07")) for _ in range(20)]
    for viewer in viewers:
        await place_where(viewer, "user07", rank=7)
    await turns()
    read = metric("ws_places_read_total")
    async with playing(running.settings) as submit:
        await submit("user07", 1)
    got = [await place_where(viewer, "user07", score=931) for viewer in viewers]

    assert metric("ws_places_read_total") == read + 1
    assert all(place == got[0] for place in got), "all got the same bytes"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("order", ["highest", "lowest"])
@pytest.mark.parametrize("partitions", [1, 3, 20])
async def test_places_are_those_of_the_whole_board(
    start_streamer: StartStreamer, connect: Connect, partitions: int, order: Any
) -> None:
    rules = Rules(operator="add" if order == "highest" else "best", order=order, points="stated")
    layout = Layout(partitions=partitions, rules=rules)
    running = await start_streamer(opened=False)
    await open_board(running.store, Board(layout=layout))
    await eventually_async(lambda: running.streamer.watcher.is_ready)
    choose = random.Random(partitions)
    users = [f"user{number}" for number in range(60)]
    async with playing(running.settings) as submit:
        for user in users[:-3]:  # many equals, and three without a score
            await submit(user, choose.randint(1, 15), rules=rules)
        viewers: dict[str, RawViewer] = {}
        for start in range(0, len(users), 5):
            viewer = await connect(running.port)
            await watch(viewer, *users[start : start + 5])
            viewers |= dict.fromkeys(users[start : start + 5], viewer)
        for _ in range(3):
            for user in choose.sample(users, 10):
                await submit(user, choose.randint(1, 15), rules=rules)
            rows = await rows_of(running.store)
            for user, viewer in viewers.items():
                await settled(viewer, rows, user)


@pytest.mark.usefixtures("no_turns")
async def test_first_reads_of_a_board_of_many_partitions_are_as_small_as_later_ones(
    start_streamer: StartStreamer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await start_streamer(opened=False)
    await open_board(running.store, Board(layout=Layout(partitions=20)))
    await eventually_async(lambda: running.streamer.watcher.is_ready)
    sampler = running.streamer._sampler
    sizes: list[int] = []
    real = sampler._read

    async def read(board: WatchedPlaces, users: Sequence[WatchedUser], top: Window) -> bool:
        sizes.append(len(users))
        return await real(board, users, top)

    monkeypatch.setattr(sampler, "_read", read)
    viewer = await connect(running.port)
    await watch(viewer, *(f"user{number}" for number in range(5)))
    for number in range(5):
        await place_where(viewer, f"user{number}", rank=None)
    assert sizes == [4, 1]


@pytest.mark.usefixtures("no_turns")
async def test_a_user_that_was_read_in_an_older_state_is_read_again(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer(scores=TWENTY)
    viewer = await connect(running.port)
    await watch(viewer, "user12")
    await place_where(viewer, "user12", rank=12)
    sampler = running.streamer._sampler
    board = running.streamer.manager.places.boards["main"]
    top = await sampler._look(board)
    assert top is not None
    (user,) = board.users.values()
    assert user.positions == top.positions
    later = msgspec.structs.replace(top, seq=top.seq + 1, positions=((top.epoch, top.seq + 1),))
    assert await sampler._read(board, [user], later)
    assert user.positions == top.positions


async def settled(viewer: RawViewer, rows: Sequence[Row], user_id: str) -> None:
    """Read until the last place of a user is the right one."""
    right = expected(rows, user_id)
    async with asyncio.timeout(15):
        while True:
            got = places(viewer, user_id)
            if got and told(got[-1]) == right:
                return
            await viewer.next("place")


async def fill(redis_url: str, scores: dict[str, int]) -> None:
    """Replace the users of the board."""
    packed = {
        user: pack(score, SLOT_COUNT - 1 - number % SLOT_COUNT)
        for number, (user, score) in enumerate(scores.items())
    }
    async with aioredis.Redis.from_url(redis_url) as client:
        await client.unlink(KEYS.board)
        members = list(packed.items())
        for start in range(0, len(members), 10_000):
            await client.zadd(KEYS.board, dict(members[start : start + 10_000]))
        await client.hincrby(KEYS.meta, "seq", 1)


@pytest.mark.slow
async def test_a_change_among_a_hundred_thousand_is_seen_within_twelve_tenths_of_a_second(
    start_streamer: StartStreamer, connect: Connect, make_token: MakeToken, redis_url: str
) -> None:
    running = await start_streamer(scores=TWENTY)
    await fill(redis_url, {f"user{number:06}": 1_000_000 - 7 * number for number in range(100_000)})
    viewer = await connect(running.port, token=make_token("user050000"))
    others = [await connect(running.port) for _ in range(100)]
    for number, other in enumerate(others):
        await watch(other, *(f"user{500 * number + step:06}" for step in range(5)))
    await place_where(viewer, "user050000", rank=50_001)
    choose = random.Random(1)
    async with playing(running.settings) as submit:
        for number in range(8):
            await asyncio.sleep(choose.random())  # pace: any time of a turn
            began_s = time.monotonic()
            await submit("user050000", 1)
            place = await place_where(viewer, "user050000", score=650_001 + number)
            assert time.monotonic() - began_s < 1.2
            rank = 50_001 - (number + 1 + 6) // 7
            assert place["rank"] in {rank, rank + 1}
            assert place["total"] == 100_000


def has_skipped(count: float) -> bool:
    return metric("ws_places_skipped_total") >= count


def held(running: RunningStreamer) -> list[Any]:
    return [one for one in running.streamer.manager.connections if one._flow.is_held]  # type: ignore[attr-defined]


@pytest.mark.usefixtures("quick")
async def test_a_slow_viewer_skips_places_and_gets_the_newest_later(
    start_streamer: StartStreamer, connect: Connect, make_token: MakeToken
) -> None:
    running = await start_streamer(scores=TWENTY, slow_viewer_s=60)
    viewer = await connect(running.port, token=make_token("user12"), receive_bytes=4096)
    await place_where(viewer, "user12", rank=12)
    [one] = list(running.streamer.manager.connections)
    filler = 8_000_000
    one._transport.write(b" " * filler)  # type: ignore[attr-defined]
    await eventually_async(lambda: len(held(running)) == 1)
    skipped = metric("ws_places_skipped_total")
    async with playing(running.settings) as submit:
        for number in range(1, 5):
            await submit("user12", 1)
            await eventually_async(partial(has_skipped, skipped + number))

    while len(viewer.buffer) < filler:  # it is too large for the viewer of the test
        await viewer._fill()
    del viewer.buffer[:filler]
    frame = await viewer.frame()
    while frame.opcode != TEXT or frame.message["type"] != "place":
        frame = await viewer.frame()
    assert frame.message["score"] == 884, "the first place after the pause is the newest"
    following = await viewer.frame()
    assert (following.opcode, following.payload) == (PING, b"p"), "it is ack-paced now"
    assert len(places(viewer, "user12")) == 2


@pytest.mark.usefixtures("quick")
async def test_an_ack_paced_viewer_gets_the_next_place_after_its_pong(
    start_streamer: StartStreamer, connect: Connect, make_token: MakeToken, turns: Turns
) -> None:
    running = await start_streamer(scores=TWENTY)
    viewer = await connect(running.port, token=make_token("user12"))
    await place_where(viewer, "user12", rank=12)
    [one] = list(running.streamer.manager.connections)
    one._flow.is_ack_paced = True  # type: ignore[attr-defined]
    viewer.answers_pings = False
    async with playing(running.settings) as submit:
        await submit("user12", 1)
        await place_where(viewer, "user12", score=881)
        assert (await viewer.frame()).payload == b"p"
        await submit("user12", 1)
        await submit("user12", 1)
        await turns()
        assert viewer.buffer == b""
        await viewer.send(masked_frame(PONG, b"p"))
        await place_where(viewer, "user12", score=883)
    assert [place["score"] for place in places(viewer, "user12")] == [880, 881, 883]


@pytest.mark.usefixtures("quick")
async def test_places_and_boards_take_turns_on_a_slow_connection_to_a_busy_board(
    start_streamer: StartStreamer, connect: Connect, make_token: MakeToken, turns: Turns
) -> None:
    running = await start_streamer(scores=TWENTY)
    viewer = await connect(running.port, token=make_token("user12"))
    await place_where(viewer, "user12", rank=12)
    [one] = list(running.streamer.manager.connections)
    one._flow._start_ack_pacing(asyncio.get_running_loop().time())  # type: ignore[attr-defined]
    viewer.answers_pings = False
    sent: list[str] = []
    async with playing(running.settings) as submit:
        for _ in range(6):
            await submit("user01", 1)
            await submit("user12", 1)
            await turns()
            frame = await viewer.frame()
            while frame.opcode != PING:
                sent.append(frame.message["type"])
                frame = await viewer.frame()
            await submit("user01", 1)
            await submit("user12", 1)
            await turns()
            await viewer.send(masked_frame(PONG, frame.payload))
    first = sent.index("place")
    assert first <= 2, "the first place was written before"
    assert sent[first : first + 4] == ["place", "leaderboard"] * 2


@pytest.mark.usefixtures("quick")
async def test_a_user_that_leaves_the_board_has_no_rank(
    start_streamer: StartStreamer, connect: Connect, make_token: MakeToken, redis_url: str
) -> None:
    """As after a ban or an erasure, which raise seq and need not be announced."""
    running = await start_streamer(scores=TWENTY)
    viewer = await connect(running.port, token=make_token("user12"))
    behind = await connect(running.port, token=make_token("user13"))
    await place_where(viewer, "user12", rank=12)
    async with aioredis.Redis.from_url(redis_url) as client:
        await client.zrem(KEYS.board, "user12")
        await client.hincrby(KEYS.meta, "seq", 1)
    place = await place_where(viewer, "user12", rank=None)
    assert (place["score"], place["above"], place["below"]) == (None, [], [])
    await place_where(behind, "user13", rank=12)


@pytest.mark.usefixtures("quick")
async def test_places_begin_anew_with_a_season(
    start_streamer: StartStreamer, connect: Connect, make_token: MakeToken, redis_url: str
) -> None:
    rules = Rules(season="monthly", time_zone="UTC")
    running = await start_streamer(board=Board(layout=Layout(rules=rules)), scores=TWENTY)
    viewer = await connect(running.port, token=make_token("user12"))
    await place_where(viewer, "user12", rank=12)
    async with aioredis.Redis.from_url(redis_url, decode_responses=True) as client:
        season = Season.parse(str(await client.hget(KEYS.meta, "season")))
        ended = Season(season.id, season.start_s, int(time.time()) - 1)
        await client.hset(KEYS.meta, "season", str(ended))
    await running.store.turn(Partition("main"), rules)
    place = await place_where(viewer, "user12", rank=None)
    assert place["total"] == 0


@pytest.mark.usefixtures("quick")
async def test_a_reseeded_board_sends_places_of_its_epoch(
    start_streamer: StartStreamer, connect: Connect, make_token: MakeToken
) -> None:
    running = await start_streamer(scores=TWENTY)
    viewer = await connect(running.port, token=make_token("user12"))
    first = await place_where(viewer, "user12", rank=12)
    await open_board(running.store, scores=TWENTY)
    await place_where(viewer, "user12", rank=12, epoch=first["epoch"] + 1)


@pytest.mark.usefixtures("quick")
async def test_an_older_state_of_the_board_is_not_sent(
    start_streamer: StartStreamer,
    connect: Connect,
    make_token: MakeToken,
    redis_url: str,
    turns: Turns,
) -> None:
    running = await start_streamer(scores=TWENTY)
    viewer = await connect(running.port, token=make_token("user12"))
    async with playing(running.settings) as submit:
        await submit("user12", 3)
        await submit("user12", 3)
    await place_where(viewer, "user12", score=886)
    await turns()
    async with aioredis.Redis.from_url(redis_url) as client:
        await client.zadd(KEYS.board, {"user12": pack(5, SLOT_COUNT - 1)})
        await client.hincrby(KEYS.meta, "seq", -1)
        late = await connect(running.port, token=make_token("user13"))
        await late.next("leaderboard")
        await turns()
        for one in (viewer, late):
            await read_all(one)
        assert [one["score"] for one in places(viewer, "user12")][-1] == 886
        assert not places(late, "user13")
        await client.hincrby(KEYS.meta, "epoch", 1)
        await place_where(viewer, "user12", score=5)


@pytest.mark.one_server
@pytest.mark.usefixtures("quick")
async def test_nothing_is_sent_without_redis_and_changed_places_when_it_is_back(
    start_streamer: StartStreamer,
    connect: Connect,
    make_token: MakeToken,
    make_proxy: MakeProxy,
    redis_url: str,
) -> None:
    proxy = await make_proxy(int(redis_url.rpartition(":")[2].partition("/")[0]))
    running = await start_streamer(scores=TWENTY, url=proxy.through(redis_url))
    viewer = await connect(running.port, token=make_token("user12"))
    await place_where(viewer, "user12", rank=12)
    proxy.refuse()
    status = await viewer.next("status")
    assert status["state"] == "stale"
    async with playing(Settings(redis_url=Secret(redis_url))) as submit:
        await submit("user12", 3)
        await submit("user12", 3)
    late = await connect(running.port, token=make_token("user13"))
    await read_all(late)
    assert not places(late, "user13")
    await proxy.restore()
    await place_where(viewer, "user12", score=886)
    await place_where(late, "user13", rank=13)
    assert [place["score"] for place in places(viewer, "user12")] == [880, 886]


@pytest.mark.usefixtures("quick")
async def test_an_unreadable_board_ends_nothing_and_its_places_follow(
    start_streamer: StartStreamer, connect: Connect, make_token: MakeToken, redis_url: str
) -> None:
    running = await start_streamer(scores=TWENTY)
    golf = Board("golf")
    await open_board(running.store, golf, scores=[("user12", 77)])
    await running.store.write_boards([Board(), golf])
    viewer = await connect(running.port, token=make_token("user12"))
    other = await connect(running.port, f"{PATH}?board=golf", token=make_token("user12"))
    await place_where(viewer, "user12", rank=12)
    await place_where(other, "user12", rank=1)
    async with aioredis.Redis.from_url(redis_url) as client:
        scores = await client.zrange(KEYS.board, 0, -1, withscores=True)
        await client.set(KEYS.board, "no sorted set")
        await client.hincrby(KEYS.meta, "seq", 1)
        failing = running.streamer.manager.places.boards["main"]
        await eventually_async(lambda: failing.is_failing)
        async with playing(running.settings) as submit:
            await submit("user12", 1, board="golf")
        await place_where(other, "user12", score=78)
        await client.unlink(KEYS.board)
        await client.zadd(KEYS.board, {user: score for user, score in scores if user != b"user01"})
        await client.hincrby(KEYS.meta, "seq", 1)
    await place_where(viewer, "user12", rank=11)


@pytest.mark.usefixtures("quick")
async def test_a_private_board_gives_places_to_those_who_may_read_it(
    start_streamer: StartStreamer, connect: Connect, make_token: MakeToken
) -> None:
    running = await start_streamer(scores=TWENTY)
    anonymous = await connect(running.port)
    await watch(anonymous, "user12")
    await place_where(anonymous, "user12", rank=12)
    member = await connect(running.port, token=make_token("user12"))
    await running.store.configure(Partition("main"), Board(is_public=False))
    assert await anonymous.closed() == 4403
    async with playing(running.settings) as submit:
        await submit("user12", 1)
    await place_where(member, "user12", score=881)
    assert [place["score"] for place in places(anonymous, "user12")] == [880]


@pytest.mark.usefixtures("quick")
async def test_places_are_of_the_board_of_the_handshake(
    start_streamer: StartStreamer, connect: Connect, make_token: MakeToken
) -> None:
    running = await start_streamer(scores=TWENTY)
    golf = Board("golf")
    await open_board(running.store, golf, scores=[("user12", 77), ("other", 70)])
    await running.store.write_boards([Board(), golf])
    viewer = await connect(running.port, f"{PATH}?board=golf", token=make_token("user12"))
    main = await connect(running.port, token=make_token("user12"))
    place = await viewer.next("place")
    assert (place["board"], place["score"], place["rank"]) == ("golf", 77, 1)
    assert (await main.next("place"))["score"] == 880
    assert watched(running) == {"golf": {"user12"}, "main": {"user12"}}


async def test_a_flood_of_watch_messages_is_closed_like_any_other(
    start_streamer: StartStreamer, connect: Connect
) -> None:
    running = await start_streamer(scores=TWENTY)
    viewer = await connect(running.port)
    with pytest.raises(Closed) as closed:  # noqa: PT012
        for number in range(200):
            await watch(viewer, f"user{number}")
        while True:
            await viewer.frame()
    assert closed.value.code in {4429, 1006}
    await running.wait_until_empty()
    assert watched(running) == {}
