"""Seasons of a few seconds: each action counts in one of them, whatever happens at the boundary."""

import asyncio
import random
import time
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
import redis

from flusher import seasons
from scoreboard.errors import NotFound, OperatorMistake, SeasonClosed, UnknownSeason
from scoreboard.ledger import dead_letters
from scoreboard.ledger.acts import ActFilter, select_acts
from scoreboard.ledger.boards import insert_board, select_board, set_board_limits
from scoreboard.ledger.dead_letters import Overrides
from scoreboard.ledger.exports import open_rows, user_tables
from scoreboard.ledger.held import HeldFilter, select_held
from scoreboard.ledger.pool import Connection, connect
from scoreboard.ledger.seasons import (
    ask_revision,
    count_season_scores,
    current_scores,
    freeze_season,
    revise_season,
    select_season_standing,
    select_season_standings,
    select_seasons,
    select_seasons_to_revise,
)
from scoreboard.ledger.users import (
    UserInSeason,
    UserOnBoard,
    select_user,
    select_user_boards,
    select_user_seasons,
)
from scoreboard.model import (
    Action,
    Board,
    Layout,
    Limits,
    Partition,
    Receipt,
    Rules,
    partition_of,
)
from scoreboard.moderation.acts import Moderator
from scoreboard.moderation.plans import (
    BanChange,
    Correction,
    Release,
    Request,
    Undo,
    Void,
    WindowVoid,
)
from scoreboard.recovery.board_changes import open_new_board
from scoreboard.recovery.reseed import SESSION, reseed
from scoreboard.recovery.verify import verify, verify_season
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.runtime.telemetry import REGISTRY
from scoreboard.seasons import Season, season_at
from scoreboard.store.client import make_client
from scoreboard.store.keys import BOARDS, PartitionKeys
from tests.support.eventually import eventually_async
from tests.support.servers.flushers import (
    act,
    dispatching,
    flushing,
    is_drained,
    query,
    store_of,
)

pytestmark = pytest.mark.slow
PARTITIONS = 3
SHORT = Rules(season="cron:*/4 * * * * *", time_zone="UTC")
"""Seasons of 4 s; the command accepts none below a minute."""
LONG = Rules(season="cron:0 0 1 1 *", time_zone="UTC")


class World:
    """A board with seasons."""

    def __init__(self, settings: Settings, rules: Rules) -> None:
        self.settings = settings
        self.board = Board("main", Layout(PARTITIONS, 1000, 4, rules))

    async def open(self) -> None:
        async with await connect(self.settings, name="test") as connection:
            await insert_board(connection, self.board)
        await self.reseed()

    async def reseed(self) -> None:
        connection = await connect(self.settings, name="test", autocommit=True, **SESSION)
        try:
            async with store_of(self.settings) as store:
                board = await select_board(connection, "main")
                assert board == self.board
                await reseed(store, connection, board, list(range(PARTITIONS)), actor="test")
        finally:
            await connection.close()

    async def play(self, *actions: Action) -> list[Receipt | BaseException]:
        return await act(
            self.settings,
            *(
                Action(one.user_id, one.action_id, one.delta, rules=self.board.layout.rules,
                       season=one.season)
                for one in actions
            ),
        )  # fmt: skip

    async def drained(self) -> None:
        await eventually_async(lambda: is_drained(self.settings, partitions=PARTITIONS), 20)

    async def season(self) -> str:
        """Return the id of the current season of partition 0."""
        async with store_of(self.settings) as store:
            season = (await store.state(Partition("main"))).season
        assert season is not None
        return season.id

    async def end(self) -> None:
        """Let the current season end some time ago, as if the clock had gone on."""
        end_s = int(time.time())
        with redis.Redis.from_url(self.settings.redis_url.reveal(), decode_responses=True) as it:
            for number in range(PARTITIONS):
                meta = PartitionKeys(Partition("main", number)).meta
                name, start, _ = str(it.hget(meta, "season")).split(":")
                it.hset(meta, "season", f"{name}:{start}:{end_s}")

    async def turn(self) -> str:
        """Turn all partitions; return the id of the season that began."""
        async with store_of(self.settings) as store:
            for number in range(PARTITIONS):
                await store.turn(Partition("main", number), self.board.layout.rules)
        return await self.season()

    async def frozen(self, count: int) -> None:
        """Wait until ``count`` seasons are frozen."""

        def found() -> bool:
            [(frozen,)] = query(
                self.settings, "SELECT count(*) FROM seasons WHERE frozen_at IS NOT NULL"
            )
            return frozen >= count

        await eventually_async(found, 20)

    async def verify(self) -> None:
        """Check that a full verification finds nothing, and the sums of every season."""
        client = make_client(self.settings, name="test")
        connection = await connect(self.settings, name="test", autocommit=True, **SESSION)
        try:
            verdict = await verify(
                client, connection, self.board, sample=None, report=lambda *_: None
            )
            assert (verdict.drifted, verdict.findings) == ((), ())
        finally:
            await connection.close()
            await client.aclose()
        assert self.scores() == self.sums()

    def sums(self) -> dict[tuple[str, str], int]:
        """Return the sums of the ledger by (season, user)."""
        rows = query(
            self.settings,
            "SELECT e.season, u.external_id, sum(e.delta) FROM score_events e"
            " JOIN users u ON u.id = e.user_id GROUP BY 1, 2",
        )
        return {(season, user): int(total) for season, user, total in rows}

    def scores(self) -> dict[tuple[str, str], int]:
        rows = query(
            self.settings,
            "SELECT split_part(s.board, '@', 2), u.external_id, s.score FROM scores s"
            " JOIN users u ON u.id = s.user_id",
        )
        return {(season, user): score for season, user, score in rows}

    async def shown(self) -> dict[str, int]:
        async with store_of(self.settings) as store:
            window = await store.leaderboard("main", limit=100)
        return {row.user_id: row.score for row in window.rows}

    async def connected(self) -> Connection:
        return await connect(self.settings, name="test", autocommit=True)

    async def moderate(self, *requests: Request) -> list[str]:
        done: list[str] = []
        for request in requests:
            connection = await self.connected()
            try:
                async with store_of(self.settings) as store:
                    moderator = Moderator(
                        store, connection, self.board, actor="me", stream_cap=1000
                    )
                    plan = await moderator.plan(request)
                    done.append((await moderator.perform(request, plan, reason="test")).act_id)
            finally:
                await connection.close()
        return done


@pytest.fixture(autouse=True)
def read_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notice soon that a test has changed when a season ends."""
    monkeypatch.setattr(seasons, "LIST_EVERY_S", 1.0)


@pytest.fixture
def settings(redis_url: str, database_url: str) -> Settings:
    return Settings(
        redis_url=Secret(redis_url), database_url=Secret(database_url), flusher_metrics_port=0
    )


@pytest.fixture
async def world(settings: Settings) -> World:
    one = World(settings, LONG)
    await one.open()
    return one


def first_season() -> str:
    return season_at(LONG, time.time()).id


async def test_each_acknowledged_action_is_in_one_season_under_load(settings: Settings) -> None:
    world = World(settings, SHORT)
    await world.open()
    counted: list[tuple[str, str]] = []
    ends_at = time.monotonic() + 13
    async with flushing(settings), dispatching(settings) as dispatcher:

        async def play(user: str) -> None:
            number = 0
            while time.monotonic() < ends_at:
                number += 1
                one = Action(user, f"win:{number}", 1, rules=SHORT)
                first = await dispatcher.submit("main", one)
                assert not first.replayed
                again = await dispatcher.submit("main", one)
                assert (again.score, again.replayed) == (first.score, True)
                counted.append((user, one.action_id))

        await asyncio.gather(*(play(f"user{n}") for n in range(24)))
        await world.drained()
        await world.frozen(3)

    ledger = query(
        settings,
        "SELECT u.external_id, e.action_id, e.season, extract(epoch FROM e.occurred_at)"
        " FROM score_events e JOIN users u ON u.id = e.user_id",
    )
    assert sorted((user, action) for user, action, _, _ in ledger) == sorted(counted)
    spans = {
        season: (start, end)
        for season, start, end in query(
            settings,
            "SELECT season, extract(epoch FROM starts_at), extract(epoch FROM ends_at)"
            " FROM seasons",
        )
    }
    assert len({season for _, _, season, _ in ledger}) >= 4
    for user, action, season, occurred_s in ledger:
        start_s, end_s = spans[season]
        assert start_s <= occurred_s < end_s, (user, action, season)
    for season in query(settings, "SELECT season FROM seasons WHERE frozen_at IS NOT NULL"):
        rows = query(
            settings,
            "SELECT u.external_id, t.score FROM season_standings t JOIN users u ON u.id = t.user_id"
            " WHERE season = %s ORDER BY rank",
            *season,
        )
        sums = {user: total for (name, user), total in world.sums().items() if name == season[0]}
        assert dict(rows) == sums
        assert [score for _, score in rows] == sorted(sums.values(), reverse=True)
    assert world.scores() == world.sums()
    assert query(settings, "SELECT 1 FROM dead_events") == []
    assert query(settings, "SELECT 1 FROM rejected_events") == []


async def test_a_season_ends_without_traffic_and_viewers_see_the_empty_board(world: World) -> None:
    first = await world.season()
    await world.play(Action("alice", "win:1", 30), Action("bob", "win:1", 20))
    async with flushing(world.settings):
        await world.drained()
        assert await world.shown() == {"alice": 30, "bob": 20}
        await world.end()
        began = time.monotonic()
        await eventually_async(lambda: _is_empty(world), 10)
        assert time.monotonic() - began < 6
        await world.frozen(1)
    assert world.scores() == {(first, "alice"): 30, (first, "bob"): 20}
    await world.verify()


async def test_a_season_that_does_not_end_is_measured_until_it_does(world: World) -> None:
    await world.play(Action("alice", "win:1", 30))
    with redis.Redis.from_url(world.settings.redis_url.reveal(), decode_responses=True) as client:

        def set_zone(zone: str, before: str) -> None:
            query(world.settings, "UPDATE boards SET time_zone = %s", zone)
            client.hset(BOARDS, "main", str(client.hget(BOARDS, "main")).replace(before, zone))

        def set_state(state: str) -> None:
            for number in range(PARTITIONS):
                client.hset(PartitionKeys(Partition("main", number)).meta, "state", state)

        async with flushing(world.settings):
            await world.drained()
            await eventually_async(lambda: _overdue_s() == 0, 5)
            set_zone("Nowhere/City", "UTC")  # as if the host had lost the zone
            await world.end()
            await eventually_async(lambda: _overdue_s() > 2, 15)
            assert await world.shown() == {"alice": 30}
            set_state("archived")  # an archived board keeps its season
            await eventually_async(lambda: _overdue_s() == 0, 5)
            set_state("open")
            await eventually_async(lambda: _overdue_s() > 2, 5)
            set_zone("UTC", "Nowhere/City")
            await eventually_async(lambda: _is_empty(world), 10)
            await eventually_async(lambda: _overdue_s() == 0, 5)


def _overdue_s() -> float:
    return REGISTRY.get_sample_value("scoreboard_season_overdue_seconds") or 0.0


async def test_more_seasons_end_at_once_than_the_flusher_has_connections(
    settings: Settings,
) -> None:
    world = World(settings, LONG)
    world.board = Board("main", Layout(64, 1000, 4, LONG))
    async with await connect(settings, name="test") as connection:
        await insert_board(connection, world.board)
    connection = await connect(settings, name="test", autocommit=True, **SESSION)
    async with store_of(settings) as store, flushing(settings):
        await reseed(store, connection, world.board, list(range(64)), actor="test")
        await connection.close()
        await eventually_async(lambda: is_drained(settings, partitions=64), 30)
        end_s = int(time.time())
        with redis.Redis.from_url(settings.redis_url.reveal(), decode_responses=True) as client:
            for number in range(64):
                meta = PartitionKeys(Partition("main", number)).meta
                name, start, _ = str(client.hget(meta, "season")).split(":")
                client.hset(meta, "season", f"{name}:{start}:{end_s}")

        async def are_turned() -> bool:
            states = await store.states("main")
            return all(one.season and one.season.start_s >= end_s for one in states.values())

        await eventually_async(are_turned, 15)
        await world.frozen(1)


async def _is_empty(world: World) -> bool:
    return await world.shown() == {}


async def test_a_flusher_that_was_away_counts_each_season_on_its_own(world: World) -> None:
    first = await world.season()
    await world.play(Action("alice", "win:1", 30), Action("bob", "win:1", 20))
    await world.end()
    # Only the partitions of these users are turned by their updates.
    [receipt] = await world.play(Action("alice", "win:2", 5))
    assert isinstance(receipt, Receipt)
    assert (receipt.score, receipt.replayed) == (5, False)
    second = await world.turn()
    assert second != first

    async with flushing(world.settings):
        await world.drained()
        await world.frozen(1)
    assert world.sums() == {(first, "alice"): 30, (first, "bob"): 20, (second, "alice"): 5}
    await world.verify()
    connection = await world.connected()
    rows = await select_season_standings(connection, "main", first, offset=0, limit=10)
    assert [(row.rank, row.user_id, row.score) for row in rows] == [
        (1, "alice", 30),
        (2, "bob", 20),
    ]
    await connection.close()


async def test_missed_seasons_are_skipped(settings: Settings) -> None:
    world = World(settings, SHORT)
    await world.open()
    first = await world.season()
    await world.play(Action("alice", "win:1", 30, season=first))
    async with store_of(settings) as store:
        season = (await store.state(Partition("main"))).season
        assert season is not None
        following_s = 2 * season.end_s - season.start_s

        async def is_missed() -> bool:
            return await store.now_s() > following_s

        await eventually_async(is_missed, within_s=30)
    assert await world.season() == first
    async with flushing(settings):
        await world.play(Action("alice", "win:2", 5))
        await world.frozen(1)
        await world.drained()
    played = {season for season, _ in world.sums()}
    assert len(played) == 2
    assert first in played
    names = [name for (name,) in query(settings, "SELECT season FROM seasons ORDER BY starts_at")]
    assert names[0] == first
    starts = query(settings, "SELECT extract(epoch FROM starts_at) FROM seasons ORDER BY 1")
    assert starts[1][0] - starts[0][0] >= 8, "the seasons between have no row"
    assert world.scores() == world.sums()


async def test_an_emptied_redis_is_not_a_new_season(world: World) -> None:
    first = await world.season()
    await world.play(Action("alice", "win:1", 30))
    async with flushing(world.settings):
        await world.drained()
    # PostgreSQL has a season that ended while Redis was away.
    query(world.settings, "UPDATE seasons SET ends_at = now() - INTERVAL '5 s'")
    query(
        world.settings,
        "UPDATE flush_state SET season = split_part(season, ':', 1) || ':' ||"
        " split_part(season, ':', 2) || ':' || (extract(epoch FROM now())::BIGINT - 5)",
    )
    with redis.Redis.from_url(world.settings.redis_url.reveal()) as client:
        client.flushall()
    await world.reseed()
    assert await world.season() == first
    assert await world.shown() == {"alice": 30}
    # A repeat of an action of the ended season is still known.
    [receipt] = await world.play(Action("alice", "win:1", 30))
    assert isinstance(receipt, Receipt)
    assert (receipt.score, receipt.replayed) == (30, True)
    [receipt] = await world.play(Action("alice", "win:2", 4))
    assert isinstance(receipt, Receipt)
    assert receipt.score == 4
    async with flushing(world.settings):
        await world.drained()
        await world.frozen(1)
    assert {season for season, _ in world.sums()} == {first, await world.season()}
    await world.verify()
    # Emptied again, in the new season.
    with redis.Redis.from_url(world.settings.redis_url.reveal()) as client:
        client.flushall()
    await world.reseed()
    assert await world.shown() == {"alice": 4}
    await world.verify()


async def test_a_board_with_scores_of_a_season_is_not_opened_as_a_new_one(world: World) -> None:
    """Creating it again would otherwise reseed it without the checks of a reseed."""
    await world.play(Action("alice", "win:1", 30))
    async with flushing(world.settings):
        await world.drained()
    with redis.Redis.from_url(world.settings.redis_url.reveal()) as client:
        client.flushall()
    async with (
        store_of(world.settings) as store,
        await connect(world.settings, name="test", autocommit=True, **SESSION) as connection,
    ):
        assert not await open_new_board(store, connection, "main", actor="test")
        assert not (await store.state(Partition("main"))).is_open


async def test_a_late_duplicate_of_an_earlier_season_does_not_count(world: World) -> None:
    first = await world.season()
    await world.play(Action("alice", "win:1", 30))
    async with flushing(world.settings):
        await world.drained()
        await world.end()
        await world.turn()
        with redis.Redis.from_url(world.settings.redis_url.reveal()) as client:
            for key in client.keys("*:seen:*"):
                client.unlink(key)  # the dedup window is over
        await world.play(Action("alice", "win:1", 30), Action("bob", "win:1", 20))
        await world.drained()
        second = await world.season()
        assert world.sums() == {(first, "alice"): 30, (second, "bob"): 20}
        await eventually_async(lambda: _shows(world, {"bob": 20}), 20)
        await world.drained()
    await world.verify()


async def _shows(world: World, scores: dict[str, int]) -> bool:
    return await world.shown() == scores


async def test_an_update_that_states_a_closed_season_leaves_no_trace(world: World) -> None:
    first = await world.season()
    await world.play(Action("alice", "win:1", 30, season=first))
    await world.end()
    late, repeat = await world.play(
        Action("alice", "win:2", 5, season=first), Action("alice", "win:1", 30, season=first)
    )
    assert isinstance(late, SeasonClosed)
    assert isinstance(repeat, Receipt)
    assert repeat.replayed
    second = await world.turn()
    [good] = await world.play(Action("alice", "win:2", 5, season=second))
    assert isinstance(good, Receipt)
    assert (good.score, good.replayed) == (5, False)
    async with flushing(world.settings):
        await world.drained()
    assert world.sums() == {(first, "alice"): 30, (second, "alice"): 5}


async def test_a_clock_that_was_set_back_does_not_reopen_a_season(world: World) -> None:
    first = await world.season()
    await world.play(Action("alice", "win:1", 30))
    ahead = Season("AHEAD", int(time.time()) + 10**9, int(time.time()) + 2 * 10**9)
    with redis.Redis.from_url(world.settings.redis_url.reveal()) as client:
        for number in range(PARTITIONS):
            keys = PartitionKeys(Partition("main", number))
            # As turn.lua left it, before the clock was set back.
            client.hincrby(keys.meta, "seq", 1)
            seq = int(client.hget(keys.meta, "seq") or 0)
            client.hset(keys.meta, "season", str(ahead))
            client.unlink(keys.board)
            client.xadd(keys.events, {"q": seq, "e": 1, "k": "s", "p": str(ahead)})
    async with flushing(world.settings):
        [receipt] = await world.play(Action("alice", "win:2", 5))
        assert isinstance(receipt, Receipt)
        assert receipt.score == 5
        await world.drained()
        await world.frozen(1)
    assert await world.season() == "AHEAD"
    assert world.sums() == {(first, "alice"): 30, ("AHEAD", "alice"): 5}
    await world.verify()


async def test_standings_are_frozen_once_without_banned_users(world: World) -> None:
    first = await world.season()
    await world.play(
        Action("alice", "win:1", 30),
        Action("bob", "win:1", 20),
        Action("eve", "win:1", 90),
        Action("carol", "win:1", 20),
    )
    async with flushing(world.settings):
        await world.drained()
        await world.moderate(BanChange("eve", "ban"))
        await world.end()
        await world.frozen(1)
        await world.drained()
        [ban] = await _acts(world)
        await world.moderate(Undo(ban))
        await world.drained()
        assert await world.shown() == {}
    connection = await world.connected()
    try:
        before = query(world.settings, "SELECT * FROM season_standings ORDER BY rank")
        assert len(before) == 3
        assert not await freeze_season(connection, "main", first)
        assert query(world.settings, "SELECT * FROM season_standings ORDER BY rank") == before
        current, frozen = await select_seasons(connection, "main", limit=10)
        assert (current.is_frozen, current.users, current.winners) == (False, 0, ())
        assert (frozen.id, frozen.is_frozen, frozen.users) == (first, True, 3)
        assert frozen.winners[0].user_id == "alice"
        assert await select_seasons(connection, "main", limit=10, before=current.id) == [frozen]
        assert await select_season_standing(connection, "main", first, "eve") is None
        bob = await select_season_standing(connection, "main", first, "bob")
        assert bob is not None
        assert bob.score == 20
    finally:
        await connection.close()
    await world.verify()


async def _acts(world: World) -> list[str]:
    connection = await world.connected()
    try:
        return [one.id for one in await select_acts(connection, ActFilter(), limit=10)]
    finally:
        await connection.close()


async def test_a_user_of_any_season_is_found_and_exported(world: World) -> None:
    first = await world.season()
    async with flushing(world.settings), await connect(world.settings, name="test") as connection:
        await world.play(Action("alice", "win:1", 5), Action("bob", "win:1", 7))
        await world.drained()
        await world.end()
        second = await world.turn()
        await world.play(Action("bob", "win:2", 2))
        await world.drained()
        await world.frozen(1)

        found = {
            user: await select_user_boards(connection, user, limit=10)
            for user in ("alice", "bob", "carol")
        }
        ended = await select_user_seasons(connection, "bob", limit=10)
        scores = await current_scores(connection, world.board)
        bob = await select_user(connection, "bob", scores=scores)

        exported: dict[str, list[tuple[Any, ...]]] = {}
        for name in ("scores", "standings", "ledger"):
            async with (
                connection.transaction(),
                open_rows(connection, user_tables("bob")[name], page=10) as rows,
            ):
                exported[name] = [row async for page in rows.pages for row in page]
    assert [row[:3] for row in exported["scores"]] == [("main", first, 7), ("main", second, 2)]
    assert exported["standings"] == [("main", first, 1, 7)]
    assert [row[:3] for row in exported["ledger"]] == [
        ("main", first, "win:1"),
        ("main", second, "win:2"),
    ]
    assert found == {
        "alice": [UserOnBoard("main", None, None)],
        "bob": [UserOnBoard("main", 2, None)],
        "carol": [],
    }
    assert ended == [UserInSeason("main", first, 7, 1)]
    assert (bob.score, bob.actions) == (2, 1)


async def test_acts_change_only_the_current_season(world: World) -> None:
    await world.play(Action("alice", "win:1", 30), Action("bob", "win:1", 20))
    async with flushing(world.settings):
        await world.drained()
        [correction] = await world.moderate(Correction("alice", -5))
        await world.end()
        with pytest.raises(NotFound, match="earlier seasons are final"):
            await world.moderate(Void("bob", "win:1"))
        always = (datetime(2020, 1, 1, tzinfo=UTC), datetime(2999, 1, 1, tzinfo=UTC))
        with pytest.raises(NotFound, match="earlier seasons are final"):
            await world.moderate(WindowVoid("bob", *always))
        with pytest.raises(OperatorMistake, match="which is over"):
            await world.moderate(Undo(correction))
        await world.play(Action("bob", "win:2", 7))
        await world.drained()
        await world.moderate(Void("bob", "win:2"), Correction("alice", 3))
        await world.drained()
        assert await world.shown() == {"alice": 3, "bob": 0}
        await world.frozen(1)
    await world.verify()


async def test_an_act_whose_season_ended_before_it_was_applied_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.play(Action("alice", "win:1", 30))
    record = Moderator._record

    async def record_and_turn(self: Moderator, *new: Any) -> None:
        await record(self, *new)
        await world.end()
        await world.turn()

    monkeypatch.setattr(Moderator, "_record", record_and_turn)
    with pytest.raises(OperatorMistake, match="It changed nothing"):
        await world.moderate(Correction("alice", -5))
    monkeypatch.undo()
    connection = await world.connected()
    [refused] = await select_acts(connection, ActFilter(), limit=10)
    await connection.close()
    assert refused.state == "refused"
    async with flushing(world.settings):
        await world.moderate(Correction("alice", 5))
        await world.drained()
    assert await world.shown() == {"alice": 5}
    await world.verify()


async def test_a_redis_that_came_back_from_before_a_turn_is_reseeded_in_the_later_season(
    world: World,
) -> None:
    url = world.settings.redis_url.reveal()
    first = await world.season()
    await world.play(Action("alice", "win:1", 30))
    async with flushing(world.settings):
        await world.drained()
        await world.end()
        with redis.Redis.from_url(url) as client:
            older = {key: client.dump(key) for key in client.keys("sb:{main:*")}
        await world.turn()
        await world.play(Action("alice", "win:2", 5), Action("bob", "win:1", 7))
        await world.drained()
        second = await world.season()
    with redis.Redis.from_url(url) as client:
        client.flushall()
        for key, value in older.items():
            client.restore(key, 0, value)
    assert await world.season() == first
    async with flushing(world.settings):
        await eventually_async(lambda: _shows(world, {"alice": 5, "bob": 7}), 20)
        found: list[Receipt | BaseException] = []

        async def is_repeated() -> bool:  # its partition may still be repaired
            found[:] = await world.play(Action("alice", "win:2", 5))
            return isinstance(found[0], Receipt)

        await eventually_async(is_repeated, 20)
        [again] = found
        assert isinstance(again, Receipt)
        assert (again.score, again.replayed) == (5, True)
        await world.drained()
        await world.frozen(1)
    assert world.sums() == {(first, "alice"): 30, (second, "alice"): 5, (second, "bob"): 7}
    assert await world.season() == second


async def test_a_dead_letter_counts_in_the_season_of_its_action(world: World) -> None:
    first = await world.season()
    await world.play(Action("alice", "win:1", 30))
    number = partition_of("alice", PARTITIONS)
    keys = PartitionKeys(Partition("main", number))
    with redis.Redis.from_url(world.settings.redis_url.reveal(), decode_responses=True) as client:
        season = str(client.hget(keys.meta, "season"))
        seq = client.hincrby(keys.meta, "seq", 1)
        fields = {"q": seq, "u": "alice", "a": "win:2", "d": "x", "s": 33, "e": 1, "p": season}
        client.xadd(keys.events, fields)
    async with flushing(world.settings):
        await world.end()
        await world.turn()
        await world.play(Action("alice", "win:3", 5))
        await world.drained()
        connection = await world.connected()
        try:
            [entry] = await dead_letters.select_entries(connection, "main", after=0, limit=10)
            await dead_letters.lock_board(connection, world.board)
            done = await dead_letters.apply(
                connection, world.board, entry.id, actor="me", overrides=Overrides(delta=3)
            )
        finally:
            await connection.close()
        assert done.outcome == "applied"
        second = await world.season()
        await world.drained()
        await eventually_async(lambda: _shows(world, {"alice": 5}), 20)
    assert world.sums() == {(first, "alice"): 33, (second, "alice"): 5}
    await world.verify()


def write_unreadable(world: World, user: str, action: str) -> None:
    """Write an action of the current season to the stream, with points that cannot be read."""
    keys = PartitionKeys(Partition("main", partition_of(user, PARTITIONS)))
    with redis.Redis.from_url(world.settings.redis_url.reveal(), decode_responses=True) as client:
        season = str(client.hget(keys.meta, "season"))
        seq = client.hincrby(keys.meta, "seq", 1)
        fields = {"q": seq, "u": user, "a": action, "d": "x", "s": 33, "e": 1, "p": season}
        client.xadd(keys.events, fields)


async def apply_dead(world: World, deltas: dict[str, int]) -> list[str]:
    """Apply the dead letters of users with these points; return the details."""
    connection = await world.connected()
    try:
        entries = await dead_letters.select_entries(connection, "main", after=0, limit=10)
        await dead_letters.lock_board(connection, world.board)
        done = [
            await dead_letters.apply(
                connection,
                world.board,
                entry.id,
                actor="me",
                overrides=Overrides(delta=deltas[entry.user_id]),
            )
            for entry in entries
            if entry.user_id in deltas
        ]
    finally:
        await connection.close()
    assert [one.outcome for one in done] == ["applied"] * len(deltas)
    return [one.detail for one in done]


def standings(world: World) -> list[tuple[int, str, int]]:
    return query(
        world.settings,
        "SELECT t.rank, u.external_id, t.score FROM season_standings t"
        " JOIN users u ON u.id = t.user_id ORDER BY t.season, t.rank",
    )


async def stored_dead(world: World, count: int) -> None:
    """Wait until there are ``count`` dead letters; what has no seq moves no position."""
    rows = "SELECT 1 FROM dead_events"
    await eventually_async(lambda: len(query(world.settings, rows)) == count, 20)


async def test_a_dead_letter_that_is_applied_after_the_freeze_revises_the_standings(
    world: World,
) -> None:
    """It counted in the ledger and the scores of its season, and not in the final standings."""
    first = await world.season()
    await world.play(
        Action("alice", "win:1", 30), Action("bob", "win:1", 31), Action("eve", "win:1", 90)
    )
    for user in ("alice", "carol", "eve"):
        write_unreadable(world, user, "win:2")
    async with flushing(world.settings):
        await stored_dead(world, 3)
        [ban] = await world.moderate(BanChange("eve", "ban"))
        await world.end()
        await world.frozen(1)
        await world.drained()
        assert standings(world) == [(1, "bob", 31), (2, "alice", 30)]
        await world.moderate(Undo(ban), BanChange("bob", "ban"))
        details = await apply_dead(world, {"alice": 3, "carol": 7})
        assert details == [f"counted; the final standings of {first} will be revised"] * 2
        # Who was banned when the season ended stays out, and who was not stays in.
        revised = [(1, "alice", 33), (2, "bob", 31), (3, "carol", 7)]
        await eventually_async(lambda: standings(world) == revised, 10)
        await apply_dead(world, {"eve": 1})
        await eventually_async(lambda: is_revised(world), 10)
        assert standings(world) == revised
        await world.drained()
        connection = await world.connected()
        [season] = await select_seasons(connection, "main", limit=1, before=await world.season())
        await connection.close()
        assert (season.id, season.is_frozen, season.users) == (first, True, 3)
        assert season.revised_at is not None
    [(revisions,)] = query(world.settings, "SELECT revisions FROM seasons WHERE season = %s", first)
    rows = query(world.settings, "SELECT actor FROM audit_log WHERE action = 'season revise'")
    assert rows == [("flusher",)] * revisions
    assert revisions in {2, 3}
    assert world.sums()[first, "alice"] == 33
    await world.verify()


async def test_a_dead_letter_before_the_freeze_revises_nothing(world: World) -> None:
    await world.play(Action("bob", "win:1", 31))
    write_unreadable(world, "alice", "win:2")
    async with flushing(world.settings):
        await stored_dead(world, 1)
        assert await apply_dead(world, {"alice": 40}) == ["counted"]
        await world.end()
        await world.frozen(1)
    assert standings(world) == [(1, "alice", 40), (2, "bob", 31)]
    assert query(world.settings, "SELECT 1 FROM audit_log WHERE action = 'season revise'") == []
    await world.verify()


def is_revised(world: World) -> bool:
    return query(world.settings, "SELECT 1 FROM season_revisions WHERE done_at IS NULL") == []


async def test_a_season_that_is_frozen_while_a_dead_letter_is_applied_is_revised(
    world: World,
) -> None:
    """A freeze between the ledger's row and its commit misses the row."""
    first = await world.season()
    await world.play(Action("bob", "win:1", 31))
    write_unreadable(world, "alice", "win:2")
    async with flushing(world.settings):
        await stored_dead(world, 1)
        await world.end()
        await world.turn()
        await world.drained()
        await world.frozen(1)
    query(world.settings, "TRUNCATE season_standings")
    query(world.settings, "UPDATE seasons SET frozen_at = NULL WHERE season = %s", first)
    connection, freezing = await world.connected(), await world.connected()
    try:
        async with connection.transaction():
            [entry] = await dead_letters.select_entries(connection, "main", after=0, limit=10)
            await dead_letters.lock_board(connection, world.board)
            await dead_letters.apply(
                connection, world.board, entry.id, actor="me", overrides=Overrides(delta=40)
            )
            assert await freeze_season(freezing, "main", first)
            assert standings(world) == [(1, "bob", 31)]
            assert await select_seasons_to_revise(freezing, limit=9) == []
        assert await select_seasons_to_revise(freezing, limit=9) == [("main", first)]
        assert await found_by(world, first) == [], "it is known that it will be revised"
        revise = {"actor": "me", "reason": "test"}
        done = await asyncio.gather(
            *(revise_season(one, "main", first, **revise) for one in (connection, freezing))
        )
        assert sorted(done, key=str) == [2, None], "once, by one of two flushers"
        assert await revise_season(connection, "main", first, **revise) is None
        assert standings(world) == [(1, "alice", 40), (2, "bob", 31)]
    finally:
        await connection.close()
        await freezing.close()


async def test_an_action_held_in_an_earlier_season_counts_only_if_it_is_asked_for(
    world: World,
) -> None:
    """It counted in the season in which it happened to be released, without a word."""
    limits = Limits(per_action=100)
    async with await connect(world.settings, name="test") as connection:
        await set_board_limits(connection, "main", limits)
    world.board = msgspec.structs.replace(world.board, limits=limits)
    async with store_of(world.settings) as store:
        for number in range(PARTITIONS):
            await store.configure(Partition("main", number), world.board)
    first = await world.season()
    async with flushing(world.settings):
        await world.play(
            Action("alice", "win:1", 30),
            Action("alice", "win:2", 500),
            Action("bob", "win:1", 600),
            Action("carol", "win:1", 700),
        )
        await world.drained()
        connection = await world.connected()
        early, late, voided = await select_held(connection, HeldFilter(), limit=9)
        by_user = {one.user_id: one for one in (early, late, voided)}
        assert {one.season for one in by_user.values()} == {first}
        await world.moderate(Release(by_user["alice"].id))  # of the current season
        await world.drained()
        await world.end()
        await world.frozen(1)
        second = await world.season()
        refused = Release(by_user["bob"].id)
        with pytest.raises(OperatorMistake, match=f"is of season {first}, which is over"):
            await world.moderate(refused)
        query(  # as an older flusher; end() has moved the end of the season
            world.settings,
            "UPDATE held_actions SET season = NULL, occurred_at = occurred_at - INTERVAL '1 min'",
        )
        with pytest.raises(OperatorMistake, match=f"is of season {first}, which is over"):
            await world.moderate(refused)
        [act_id] = await world.moderate(Release(by_user["bob"].id, in_current_season=True))
        await world.drained()
        assert await world.shown() == {"bob": 600}
        acts = await select_acts(connection, ActFilter(user_id="bob"), limit=1)
        assert acts[0].detail["heldIn"] == first
        async with store_of(world.settings) as store:
            moderator = Moderator(store, connection, world.board, actor="me", stream_cap=1000)
            await moderator.void_held(by_user["carol"].id, reason="too late")
        await world.moderate(Undo(act_id))
        await world.drained()
        [again] = await select_held(connection, HeldFilter(state="held"), limit=9)
        assert again.user_id == "bob"
        await connection.close()
    assert standings(world) == [(1, "alice", 530)]
    assert world.sums() == {(first, "alice"): 530, (second, "bob"): 0}
    await world.verify()


@pytest.mark.parametrize("order", ["highest", "lowest"])
async def test_the_rank_of_a_score_in_a_season_is_found_without_reading_all_rows(
    world: World, order: str
) -> None:
    choose = random.Random(7)
    rules = msgspec.structs.replace(LONG, order=order)
    board = Board("main", Layout(PARTITIONS, 1000, 4, rules))
    query(
        world.settings,
        "INSERT INTO seasons (board, season, starts_at, ends_at, frozen_at)"
        " VALUES ('main', 'S', now() - INTERVAL '2 days', now() - INTERVAL '1 day', now()),"
        " ('main', 'NONE', now() - INTERVAL '9 days', now() - INTERVAL '8 days', now())",
    )
    scores = sorted((choose.randint(0, 40) * 2 for _ in range(57)), reverse=order == "highest")
    for rank, score in enumerate(scores, 1):
        query(
            world.settings,
            "WITH one AS (INSERT INTO users (id, external_id) VALUES (gen_random_uuid(), %s)"
            " RETURNING id)"
            " INSERT INTO season_standings SELECT 'main', 'S', %s, id, %s FROM one",
            *(f"user{rank}", rank, score),
        )
    connection = await world.connected()
    try:
        for score in range(83):
            better = sum(one < score if order == "lowest" else one > score for one in scores)
            found = await count_season_scores(connection, board, "S", score)
            assert found == (better, better + scores.count(score)), score
        assert await count_season_scores(connection, board, "NONE", 5) == (0, 0)
    finally:
        await connection.close()


async def test_differences_of_an_ended_season_are_found(world: World) -> None:
    first = await world.season()
    await world.play(
        Action("alice", "win:1", 30),
        Action("bob", "win:1", 20),
        Action("carol", "win:1", 10),
        Action("eve", "win:1", 90),
    )
    async with flushing(world.settings):
        await world.drained()
        [ban] = await world.moderate(BanChange("eve", "ban"))
        await world.end()
        await world.frozen(1)
        await world.moderate(Undo(ban))
        await world.play(Action("alice", "win:2", 7))
        await world.drained()
    second = await world.season()
    assert await found_by(world) == []
    assert await found_by(world, first) == []
    of = "user_id = (SELECT id FROM users WHERE external_id = %s)"
    query(
        world.settings,
        "UPDATE season_standings SET rank = 9 - rank WHERE rank < 3",
    )
    query(world.settings, f"DELETE FROM season_standings WHERE {of}", "carol")
    standings_found = [
        ("season standings", f"{first}, alice: rank 8 with 30, due is rank 1 with 30"),
        ("season standings", f"{first}, bob: rank 7 with 20, due is rank 2 with 20"),
        ("season standings", f"{first}, carol: no standing, due is rank 3 with 10"),
    ]
    assert await found_by(world, first) == standings_found
    assert await found_by(world) == standings_found
    connection = await world.connected()
    users = await revise_season(
        connection, "main", first, actor="me", reason="test", is_forced=True
    )
    await connection.close()
    assert users == 3
    assert await found_by(world, first) == []
    assert [row[1] for row in standings(world)] == ["alice", "bob", "carol"]
    query(world.settings, f"UPDATE scores SET score = 25 WHERE board LIKE '%%@%%' AND {of}", "bob")
    assert await found_by(world, first) == [
        ("season sum", f"{first}, bob: score 25 of 1 actions, ledger 20 of 1"),
        ("season standings", f"{first}, bob: rank 2 with 20, due is rank 2 with 25"),
    ]
    connection = await connect(world.settings, name="test", autocommit=True, **SESSION)
    try:
        with pytest.raises(UnknownSeason):
            await verify_season(connection, world.board, "1999-01")
        with pytest.raises(OperatorMistake, match="is the current one"):
            await verify_season(connection, world.board, second)
    finally:
        await connection.close()


async def found_by(world: World, season: str | None = None) -> list[tuple[str, str]]:
    """Return what a full verification finds, or one of a season."""
    client = make_client(world.settings, name="test")
    connection = await connect(world.settings, name="test", autocommit=True, **SESSION)
    try:
        if season is None:
            verdict = await verify(
                client, connection, world.board, sample=None, report=lambda *_: None
            )
        else:
            verdict = await verify_season(connection, world.board, season)
    finally:
        await connection.close()
        await client.aclose()
    assert verdict.drifted == ()
    return [(one.check, one.detail) for one in verdict.findings]


async def test_two_revisions_of_a_season_at_once_are_one_after_the_other(world: World) -> None:
    """A second one that waited for the first would insert its standings again."""
    first = await world.season()
    async with flushing(world.settings):
        await world.play(Action("alice", "win:1", 30), Action("bob", "win:1", 31))
        await world.drained()
        await world.end()
        await world.frozen(1)
    one, other = await world.connected(), await world.connected()
    try:
        async with one.transaction():
            await one.execute("SELECT FROM seasons WHERE season = %s FOR UPDATE", [first])
            for is_forced in (False, True):
                await ask_revision(other, "main", first, "test")
                done = await revise_season(
                    other, "main", first, actor="me", reason="test", is_forced=is_forced
                )
                assert done is None
        revise = {"actor": "me", "reason": "test", "is_forced": True}
        found = await asyncio.gather(
            *(revise_season(each, "main", first, **revise) for each in (one, other))
        )
        assert set(found) <= {2, None}
        assert 2 in found
        assert standings(world) == [(1, "bob", 31), (2, "alice", 30)]
    finally:
        await one.close()
        await other.close()
