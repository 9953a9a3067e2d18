"""Ranks on boards with rules and seasons, in the cases in which other leaderboards had bugs.

The docstring of a test names a public report of the bug. Each case holds for the current season and
for its final standings.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis

from flusher import seasons
from scoreboard.errors import ScoreboardError
from scoreboard.ledger.boards import insert_board
from scoreboard.ledger.pool import connect
from scoreboard.model import (
    NO_LIMITS,
    SCORE_MAX,
    Action,
    Board,
    Layout,
    Limits,
    Partition,
    Receipt,
    Rules,
)
from scoreboard.moderation.acts import Moderator
from scoreboard.moderation.plans import BanChange, Correction, Request, Undo, Void
from scoreboard.recovery.reseed import SESSION, reseed
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.keys import PartitionKeys
from tests.support.clients.viewer import Connect, RawViewer, StartStreamer
from tests.support.eventually import eventually_async
from tests.support.servers.api import ApiClient, StartApi
from tests.support.servers.flushers import act, flushing, is_drained, query, store_of

pytestmark = pytest.mark.slow

MONTHLY = ("monthly", "UTC")
BEST_LOWEST = Rules("best", "lowest", 0, SCORE_MAX, "nobody", "stated", *MONTHLY)
LAST_HIGHEST = Rules("last", "highest", 0, SCORE_MAX, "nobody", "stated", *MONTHLY)
LAST_LOWEST = Rules("last", "lowest", 0, SCORE_MAX, "nobody", "stated", *MONTHLY)
ADD_HIGHEST = Rules("add", "highest", 0, SCORE_MAX, "players", "stated", *MONTHLY)
ADD_LOWEST = Rules("add", "lowest", 0, SCORE_MAX, "players", "stated", *MONTHLY)
EVERY = [BEST_LOWEST, LAST_HIGHEST, ADD_HIGHEST, ADD_LOWEST]
LEGAL = "ABCXYZabcxyz0189._|:@-"
Ranks = list[tuple[int, str, int]]


class Competition:
    """A board with seasons, with a flusher and an api."""

    def __init__(self, settings: Settings, board: Board, client: ApiClient) -> None:
        self.settings = settings
        self.board = board
        self.client = client
        self.parts = [Partition(board.name, n) for n in range(board.layout.partitions)]

    async def try_play(self, *played: tuple[str, str, int], season: str = "") -> list[Any]:
        """Send actions at once; return their receipts or errors."""
        rules = self.board.layout.rules
        actions = [Action(u, a, n, stated=True, rules=rules, season=season) for u, a, n in played]
        return await act(self.settings, *actions)

    async def play(self, *played: tuple[str, str, int]) -> list[Receipt]:
        """Send actions at once and wait until they are committed."""
        done = await self.try_play(*played)
        assert not [one for one in done if not isinstance(one, Receipt)], done
        await self.drained()
        return done

    async def drained(self) -> None:
        partitions = len(self.parts)
        await eventually_async(lambda: is_drained(self.settings, partitions=partitions))

    async def act(self, request: Request) -> str:
        """Perform an act; return its id."""
        connection = await connect(self.settings, name="test", autocommit=True)
        try:
            async with store_of(self.settings) as store:
                moderator = Moderator(store, connection, self.board, actor="me", stream_cap=1000)
                plan = await moderator.plan(request)
                done = await moderator.perform(request, plan, reason="test")
        finally:
            await connection.close()
        await self.drained()
        return done.act_id

    async def reseed(self) -> None:
        """Reseed the board, and wait until the api has heard of it: it keeps the top of a board."""
        connection = await connect(self.settings, name="test", autocommit=True, **SESSION)
        try:
            async with store_of(self.settings) as store:
                numbers = [one.number for one in self.parts]
                await reseed(store, connection, self.board, numbers, actor="test")
                epoch = (await store.leaderboard(self.board.name)).epoch
        finally:
            await connection.close()

        async def is_heard() -> bool:
            return (await self.get("leaderboard"))["epoch"] == epoch

        await eventually_async(is_heard)

    async def end_season(self) -> str:
        """End the season as if the clock had gone on; return its id when it is final."""
        await self.drained()
        end_s = 0
        with self.redis() as client:
            for partition in self.parts:
                meta = PartitionKeys(partition).meta
                name, start, _ = str(client.hget(meta, "season")).split(":")
                end_s = max(int(time.time()), int(start) + 1)
                client.hset(meta, "season", f"{name}:{start}:{end_s}")
        async with store_of(self.settings) as store:

            async def is_over() -> bool:
                return await store.now_s() >= end_s

            await eventually_async(is_over)
            for partition in self.parts:
                await store.turn(partition, self.board.layout.rules)
        statement = "SELECT 1 FROM seasons WHERE season = %s AND frozen_at IS NOT NULL"
        await eventually_async(lambda: query(self.settings, statement, name))
        await self.drained()
        return name

    def redis(self) -> "redis.Redis[str]":
        url = self.settings.redis_url.reveal()
        return redis.Redis.from_url(url, decode_responses=True, encoding="latin-1")

    async def get(self, path: str, status: int = 200, **params: Any) -> dict[str, Any]:
        answer = await self.client.get(f"/api/scores/{path}", params=params)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def page(self, **params: Any) -> Ranks:
        reply = await self.get("leaderboard", **params)
        return ranks(reply["leaderboard"])

    async def standing(self, user: str, **params: Any) -> tuple[int, str, int]:
        reply = await self.get(f"users/{user}", **params)
        return (reply["rank"], reply["userId"], reply["score"])

    async def check_ranks(self, expected: list[tuple[str, int]], **season: str) -> None:
        """Check that every read has these users and scores in this order, ranked from 1."""
        rows: Ranks = [(n, user, score) for n, (user, score) in enumerate(expected, 1)]
        assert await self.page(limit=100, **season) == rows
        for size in {1, 3} if len(rows) < 8 else {5}:
            pages = [
                await self.page(limit=size, offset=at, **season)
                for at in range(0, len(rows) + 1, size)
            ]
            assert [row for page in pages for row in page] == rows
        for place, row in enumerate(rows):
            if row[1] == ".":
                continue  # clients remove this segment of a path
            reply = await self.get(f"users/{row[1]}", around=1, **season)
            first = max(0, min(place - 1, len(rows) - 3))
            assert (reply["rank"], reply["userId"], reply["score"]) == row
            assert ranks(reply["neighbours"]) == rows[first : first + 3]
        if rows and not season:
            users = ",".join(user for _, user, _ in rows)
            assert ranks((await self.get("users", ids=users))["users"]) == rows


def ranks(rows: list[dict[str, Any]]) -> Ranks:
    return [(row["rank"], row["userId"], row["score"]) for row in rows]


@pytest.fixture(autouse=True)
def read_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notice soon that a test has changed when a season ends."""
    monkeypatch.setattr(seasons, "LIST_EVERY_S", 1.0)
    monkeypatch.setattr(seasons, "FREEZE_EVERY_S", 0.05)


@pytest.fixture
def settings(redis_url: str, database_url: str) -> Settings:
    return Settings(
        redis_url=Secret(redis_url),
        database_url=Secret(database_url),
        flusher_metrics_port=0,
        flush_linger_unawaited_ms=20,
    )


class Compete:
    """Opens competitions: ``async with compete(rules) as competition``."""

    def __init__(self, settings: Settings, start_api: StartApi) -> None:
        self._settings = settings
        self._start_api = start_api

    @asynccontextmanager
    async def __call__(
        self, rules: Rules, *, partitions: int = 1, limits: Limits = NO_LIMITS
    ) -> AsyncIterator[Competition]:
        board = Board("main", Layout(partitions, 100_000, 4, rules), limits=limits)
        async with await connect(self._settings, name="test") as connection:
            await insert_board(connection, board)
        url = self._settings.database_url.reveal()
        client = await self._start_api(open=(), database_url=url)
        competition = Competition(self._settings, board, client)
        await competition.reseed()
        async with flushing(self._settings):
            yield competition


@pytest.fixture
def compete(settings: Settings, start_api: StartApi) -> Compete:
    return Compete(settings, start_api)


@pytest.mark.parametrize("rules", [LAST_HIGHEST, LAST_LOWEST, ADD_HIGHEST, ADD_LOWEST], ids=str)
async def test_a_score_of_zero_has_a_rank_like_any_other(rules: Rules, compete: Compete) -> None:
    """0 is a score, and place 0 is the first rank (agoragames/leaderboard#53, nakama#384)."""
    change = 0 if rules.takes_values else -5
    async with compete(rules) as competition:
        await competition.play(("alice", "win:1", 5))
        await competition.check_ranks([("alice", 5)])
        await competition.play(("alice", "win:2", change))
        await competition.check_ranks([("alice", 0)])
        await competition.play(("bob", "win:1", 7))
        order = [("alice", 0), ("bob", 7)]
        expected = order if rules.order == "lowest" else order[::-1]
        await competition.check_ranks(expected)
        await competition.reseed()
        await competition.check_ranks(expected)
        final = await competition.end_season()
        await competition.check_ranks(expected, season=final)
        await competition.check_ranks([])


@pytest.mark.parametrize("rules", EVERY, ids=str)
async def test_the_first_to_reach_a_score_is_ahead_also_in_the_final_standings(
    rules: Rules, compete: Compete
) -> None:
    """Where a fraction of the score has the time, late and large scores lose their order."""
    chance = random.Random(5)
    async with compete(rules) as competition:
        for score in (1, 1_000_000, SCORE_MAX):  # each in a season of its own
            users = [f"user{chance.getrandbits(32):08x}" for _ in range(8)]
            for at in range(0, 8, 4):
                await competition.try_play(*((user, "win:1", score) for user in users[at : at + 4]))
            await competition.drained()
            expected = [(user, score) for user in users]
            await competition.check_ranks(expected)
            await competition.reseed()
            await competition.check_ranks(expected)
            final = await competition.end_season()
            await competition.check_ranks(expected, season=final)


@pytest.mark.parametrize("rules", [BEST_LOWEST, ADD_HIGHEST], ids=str)
@pytest.mark.parametrize("count", [1, 2, 7])
async def test_pages_and_neighbours_agree_at_every_border(
    rules: Rules, count: int, compete: Compete
) -> None:
    """A tie over a page's border shows a user twice or never (lichess-org/lila#20341).

    Ranks are counted from the page (nakama#2353), and rank 2 does not see rank 1 (nakama#607).
    """
    users = [f"user-{number}" for number in range(count)]
    async with compete(rules) as competition:
        await competition.play(*((user, "win:1", 10 + (n > 4)) for n, user in enumerate(users)))
        expected = [(user, 10 + (n > 4)) for n, user in enumerate(users)]
        if rules.order == "highest":
            expected.sort(key=lambda row: -row[1])
        await competition.check_ranks(expected)
        first = expected[0][0]
        await competition.act(BanChange(first, "ban"))
        await competition.check_ranks(expected[1:])
        await competition.get(f"users/{first}", 404)
        final = await competition.end_season()
        await competition.act(BanChange(first, "unban"))
        await competition.check_ranks(expected[1:], season=final)
        await competition.get(f"users/{first}", 404, season=final)
        await competition.check_ranks([])


@pytest.mark.parametrize("rules", [BEST_LOWEST, ADD_LOWEST], ids=str)
async def test_both_stores_have_one_rank_after_acts_and_a_reseed(
    rules: Rules, compete: Compete
) -> None:
    """A rank that PostgreSQL counts otherwise than Redis changes when Redis is rebuilt."""
    users = [f"user-{number}" for number in range(6)]
    async with compete(rules) as competition:
        for turn, number in enumerate((40, 30)):
            await competition.play(*((user, f"win:{turn}", number) for user in users))
        top = 30 if rules.takes_values else 70
        await competition.act(Correction("user-3", -7))
        await competition.act(Correction("user-4", 2))
        undone = await competition.act(Correction("user-0", 4))
        await competition.act(Undo(undone))  # arrives at its score again, as the last one
        await competition.act(Void("user-5", "win:1"))
        voided = 40  # what the second action added is taken back
        expected = [
            ("user-3", top - 7),
            *((user, top) for user in ("user-1", "user-2", "user-0")),
            ("user-4", top + 2),
        ]
        expected.append(("user-5", voided))
        expected.sort(key=lambda row: row[1])
        await competition.check_ranks(expected)
        await competition.reseed()
        await competition.check_ranks(expected)
        final = await competition.end_season()
        await competition.check_ranks(expected, season=final)


@pytest.mark.parametrize("partitions", [1, 2])
async def test_a_refused_call_changes_no_key_and_no_expiry(
    partitions: int, compete: Compete
) -> None:
    """A board whose season is over told an error, and had written the score before."""
    rules = Rules("add", "highest", 0, 100, "players", "stated", *MONTHLY)
    async with compete(rules, partitions=partitions, limits=Limits(50)) as competition:
        await competition.play(("alice", "win:1", 40), ("bob", "win:1", 20), ("eve", "win:1", 9))
        earlier = await competition.end_season()
        await competition.play(("alice", "win:2", 40), ("alice", "win:3", 40))
        await competition.act(BanChange("eve", "ban"))
        before = contents(competition)

        answers = await competition.try_play(("bob", "win:9", 5), season=earlier)
        answers += await competition.try_play(
            ("alice", "win:4", 40),
            ("bob", "win:5", -1),
            ("alice", "win:2", 41),
            ("eve", "win:2", 1),
        )

        codes = [one.code if isinstance(one, ScoreboardError) else one for one in answers]
        assert codes == [
            *("season-closed", "score-out-of-range", "score-out-of-range"),
            *("action-conflict", "banned"),
        ]
        for request in (Correction("bob", -1), Correction("alice", 30), Void("alice", "win:1")):
            with pytest.raises(ScoreboardError):
                await competition.act(request)
        assert contents(competition) == before
        await competition.check_ranks([("alice", 80)])


def contents(competition: Competition) -> dict[str, Any]:
    """Return the keys of the board with their contents and times of expiry."""
    found: dict[str, Any] = {}
    with competition.redis() as client:
        for key in client.keys("sb:{main:*"):
            match client.type(key):
                case "zset":
                    held: Any = client.zrange(key, 0, -1, withscores=True)
                case "hash":
                    held = client.hgetall(key)
                case _:
                    held = client.xinfo_stream(key)["last-generated-id"], client.xlen(key)
            found[str(key)] = (held, client.execute_command("PEXPIRETIME", key))
    return found


async def test_a_season_leaves_no_key_and_no_expiry_behind(compete: Compete) -> None:
    """A board that was reset expired by the time of the one before (`<id>:ttl` outlived it)."""
    async with compete(ADD_HIGHEST, limits=Limits(0, 1000, 60)) as competition:
        await competition.play(*((f"user-{n}", "win:1", 10) for n in range(20)))
        keys = PartitionKeys(competition.parts[0])
        with competition.redis() as client:
            client.hset(keys.meta, "sweep:10", 5)  # a level of the board is being swept
        first = contents(competition).keys()
        final = await competition.end_season()
        turned = contents(competition)
        assert keys.board not in turned
        assert first - turned.keys() == {keys.board}
        assert not [field for field in turned[keys.meta][0] if field.startswith("sweep")]
        assert not [key for key in turned if final in key]

        await competition.play(("user-3", "win:2", 5), ("user-1", "win:2", 5))
        assert contents(competition).keys() == first
        lasting = {key for key, (_, expires_ms) in contents(competition).items() if expires_ms < 0}
        assert lasting == {keys.board, keys.events, keys.meta}
        await competition.check_ranks([("user-3", 5), ("user-1", 5)])


@pytest.mark.parametrize("rules", EVERY, ids=str)
async def test_a_repeat_from_an_earlier_season_moves_no_rank(
    rules: Rules, compete: Compete
) -> None:
    """A re-created board kept the ranks of the dead, and a repeat moved one (nakama#1232)."""
    played = [("alice", "win:1", 30), ("bob", "win:1", 20), ("carol", "win:1", 20)]
    async with compete(rules, limits=Limits(25)) as competition:
        first = await competition.play(*played)
        await competition.end_season()
        await competition.check_ranks([])
        await competition.play(("dave", "win:1", 7))
        before = await competition.get("leaderboard")
        for _ in range(2):
            again = await competition.play(*played)
            assert [(one.score, one.seq, one.held) for one in again] == [
                (one.score, one.seq, one.held) for one in first
            ]
            assert all(one.replayed for one in again)
            assert await competition.get("leaderboard") == before
            await competition.reseed()  # also one that is restored from PostgreSQL
            before = await competition.get("leaderboard")
        await competition.check_ranks([("dave", 7)])


async def test_an_emptied_redis_shows_and_counts_nothing_until_it_is_reseeded(
    compete: Compete,
) -> None:
    """A write after the loss made a board of one row, which was then taken for the whole one."""
    async with compete(BEST_LOWEST) as competition:
        await competition.play(("alice", "win:1", 30))
        final = await competition.end_season()
        await competition.play(("bob", "win:1", 20), ("carol", "win:1", 40))
        with competition.redis() as client:
            client.flushall()
            [answer] = await competition.try_play(("dave", "win:1", 1))
            assert isinstance(answer, ScoreboardError)
            assert answer.code == "uninitialised"
            for path in ("leaderboard", "users/bob"):
                await competition.get(path, 503)
            assert not client.keys("sb:{main:*}:board")
        await competition.reseed()
        await competition.check_ranks([("bob", 20), ("carol", 40)])
        await competition.check_ranks([("alice", 30)], season=final)


async def test_every_permitted_id_is_one_user_in_the_current_and_in_final_standings(
    compete: Compete,
) -> None:
    """An id that has the character at which a list is split was two users."""
    users = [LEGAL, *LEGAL, "x" * 128, "|" * 127 + ":", "@" * 2, "a@2026-11", "act:1"]
    async with compete(ADD_HIGHEST, partitions=2) as competition:
        await competition.play(*((user, LEGAL, 100 - n) for n, user in enumerate(users)))
        expected = [(user, 100 - n) for n, user in enumerate(users)]
        await competition.check_ranks(expected)
        await competition.act(Void(LEGAL, LEGAL))
        await competition.act(Correction("x" * 128, 200))
        await competition.act(BanChange("@", "ban"))
        scores = {**dict(expected), LEGAL: 0}
        scores["x" * 128] += 200
        del scores["@"]
        expected = sorted(scores.items(), key=lambda row: -row[1])
        await competition.check_ranks(expected)
        final = await competition.end_season()
        await competition.check_ranks(expected, season=final)


@pytest.mark.parametrize("partitions", [1, 2])
async def test_viewers_get_every_row_that_moves(
    partitions: int, compete: Compete, start_streamer: StartStreamer, connect: Connect
) -> None:
    """Only the row of the user who acted was sent; those who were pushed down stayed.

    Or only viewers of the process that had the change got it: here there are two streamers.
    """
    async with compete(BEST_LOWEST, partitions=partitions) as competition:
        await competition.play(*((f"user-{n:02}", "win:1", 100 + n) for n in range(12)))
        viewers: list[RawViewer] = []
        for running in [await start_streamer(opened=False) for _ in range(2)]:
            await eventually_async(lambda one=running: one.streamer.watcher.is_ready)
            viewers.append(await connect(running.port))

        async def shows(*order: int) -> None:
            expected = [f"user-{n:02}" for n in order]
            await asyncio.gather(*(show(viewer, expected) for viewer in viewers))

        async def show(viewer: RawViewer, expected: list[str]) -> None:
            async with asyncio.timeout(2):  # without a notification, up to 5 s
                while True:
                    rows = (await viewer.next("leaderboard"))["leaderboard"]
                    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
                    if [row["userId"] for row in rows] == expected:
                        return

        await shows(*range(10))
        # Two swap within one interval, and one from below takes a place in the middle.
        await competition.try_play(
            ("user-01", "win:2", 50), ("user-00", "win:2", 60), ("user-11", "win:2", 105)
        )
        if partitions == 1:  # equal scores of two partitions are not ordered by time
            await shows(1, 0, 2, 3, 4, 5, 11, 6, 7, 8)
        else:
            order = [user for _, user, _ in await competition.page(limit=10)]
            await shows(*(int(user[-2:]) for user in order))
        await competition.act(Void("user-11", "win:2"))
        await shows(1, 0, *range(2, 10))
        await competition.act(BanChange("user-01", "ban"))
        await shows(0, *range(2, 11))
        await competition.act(Correction("user-10", -80))
        await shows(10, 0, *range(2, 10))
        await competition.act(BanChange("user-01", "unban"))
        await shows(10, 1, 0, *range(2, 9))
        await competition.end_season()
        await shows()
        await competition.try_play(("user-07", "win:3", 5))
        await shows(7)
