"""Updates from HTTP to Redis, to viewers and to PostgreSQL, each counted once."""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import psycopg
from msgspec import Struct
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from tests.support.eventually import eventually, eventually_async
from tests.support.servers.system import System

TOP = """
    SELECT u.external_id, s.score FROM scores s JOIN users u ON u.id = s.user_id
    WHERE s.board = 'main' ORDER BY s.score DESC, s.reached_at, s.last_seq
"""


class Update(Struct, frozen=True):
    user_id: str
    action_id: str
    points: int


class HttpResponse(Struct, frozen=True, rename="camel"):
    success: bool
    new_score: int
    replayed: bool


Answers = dict[Update, list[HttpResponse]]


def make_updates(*, count: int, users: int, repeats: float, seed: int = 7) -> list[Update]:
    """Return updates with a share of repeats, right after the first one or later."""
    chance = random.Random(seed)
    distinct = [
        Update(f"user-{chance.randrange(users):03}", f"win:{number}", chance.randint(1, 50))
        for number in range(round(count * (1 - repeats)))
    ]
    sent = list(distinct)
    while len(sent) < count:
        place = chance.randrange(len(sent))
        after = place + 1 if chance.random() < 0.5 else chance.randrange(place, len(sent)) + 1
        sent.insert(after, sent[place])
    return sent


async def play(
    system: System,
    updates: Sequence[Update],
    *,
    concurrency: int = 32,
    halfway: Callable[[], Awaitable[None]] | None = None,
) -> Answers:
    """Send updates in order and concurrently, repeating each until its outcome is known."""
    answers: Answers = defaultdict(list)
    waiting = iter(enumerate(updates))

    async with httpx.AsyncClient(base_url=system.api, headers=system.game_server()) as client:

        async def one_client() -> None:
            for number, update in waiting:
                if halfway is not None and number == len(updates) // 2:
                    await halfway()
                body = {
                    "userId": update.user_id,
                    "actionId": update.action_id,
                    "points": update.points,
                }
                while (reply := await client.post("/api/scores/update", json=body)).is_error:
                    assert reply.status_code == 503, reply.text
                answers[update].append(msgspec.json.decode(reply.content, type=HttpResponse))

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(one_client())
    return answers


class Viewer:
    """Records the latest board, and whether an older one was received."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, int]] = []
        self.position = (0, 0)
        self.got_older_board = False

    def take(self, frame: str | bytes) -> None:
        message: Any = msgspec.json.decode(frame)
        if message["type"] != "leaderboard":
            return
        position = (message["epoch"], message["seq"])
        self.got_older_board |= position < self.position
        self.position = position
        self.rows = [(row["userId"], row["score"]) for row in message["leaderboard"]]


@asynccontextmanager
async def watching(system: System) -> AsyncIterator[Viewer]:
    viewer = Viewer()
    async with connect(
        system.ws, subprotocols=[Subprotocol("scoreboard.v1")], compression=None
    ) as socket:

        async def read() -> None:
            async for frame in socket:
                viewer.take(frame)

        task = asyncio.create_task(read())
        try:
            yield viewer
        finally:
            await socket.close()
            await task


def select(system: System, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(system.postgres.url) as connection:
        return connection.execute(statement).fetchall()


def top(system: System, limit: int = 100) -> list[tuple[str, int]]:
    """Return the top players that `scoreboard board top` prints."""
    done = system.run("board", "top", "--limit", str(limit))
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [int(rank) for rank, _, _ in rows] == list(range(1, len(rows) + 1))
    return [(user, int(score)) for _, user, score in rows]


def expected(updates: Sequence[Update]) -> Counter[str]:
    scores: Counter[str] = Counter()
    for update in set(updates):
        scores[update.user_id] += update.points
    return scores


def wait_for_ledger(system: System, updates: Sequence[Update]) -> None:
    """Wait until PostgreSQL has each distinct action; fail if it has more."""
    wanted = len(set(updates))

    def is_complete() -> bool:
        ((count,),) = select(system, "SELECT count(*) FROM score_events")
        assert count <= wanted
        return count == wanted

    eventually(is_complete)


def check_answers(answers: Answers, updates: Sequence[Update]) -> None:
    """Check that all answers to an action have the same score, and at most one is not a replay."""
    assert {update: len(given) for update, given in answers.items()} == Counter(updates)
    for update, given in answers.items():
        assert len({answer.new_score for answer in given}) == 1, update
        assert sum(not answer.replayed for answer in given) <= 1, update


def check_stores(system: System, updates: Sequence[Update]) -> None:
    """Check that ledger, scores and Redis have the same scores in the same order."""
    scores = expected(updates)
    wait_for_ledger(system, updates)
    ledger = select(
        system,
        "SELECT u.external_id, sum(e.delta) FROM score_events e JOIN users u ON u.id = e.user_id"
        " GROUP BY 1",
    )
    assert {user: int(total) for user, total in ledger} == scores
    ranked = select(system, TOP)
    assert dict(ranked) == scores
    shown = top(system)
    assert dict(shown) == scores
    assert [score for _, score in shown] == [score for _, score in ranked]
    if system.partitions == 1:  # users with equal scores in several have an order of their own
        assert shown == ranked
    verified = system.run("verify", "--full")
    assert verified.returncode == 0, verified.stdout


async def test_ledger_scores_redis_and_viewer_agree_after_a_thousand_updates(
    system: System,
) -> None:
    updates = make_updates(count=1000, users=100, repeats=0.3)

    async with watching(system) as viewer:
        answers = await play(system, updates)

        check_answers(answers, updates)
        check_stores(system, updates)
        best = top(system, 10)
        await eventually_async(lambda: viewer.rows == best)
        assert not viewer.got_older_board
    assert sum(not answer.replayed for given in answers.values() for answer in given) == 700


async def test_a_killed_flusher_neither_loses_nor_repeats_actions(system: System) -> None:
    updates = make_updates(count=800, users=40, repeats=0.3)
    flusher = system.services["flusher"]

    async def kill() -> None:
        await asyncio.to_thread(flusher.kill)

    answers = await play(system, updates, halfway=kill)
    check_answers(answers, updates)
    ((committed,),) = select(system, "SELECT count(*) FROM score_events")
    assert committed < len(set(updates))

    flusher.start()

    check_stores(system, updates)


async def test_an_emptied_redis_returns_503_until_a_reseed_restores_it(
    system: System,
) -> None:
    updates = make_updates(count=300, users=30, repeats=0.2)
    answers = await play(system, updates)
    wait_for_ledger(system, updates)
    before = top(system)
    with system.redis_client() as client:
        client.flushall()

    old = updates[0]
    body = {"userId": old.user_id, "actionId": old.action_id, "points": old.points}
    async with httpx.AsyncClient(base_url=system.api, headers=system.game_server()) as client:
        refused = await client.post("/api/scores/update", json=body)
        assert refused.status_code == 503
        assert refused.headers["content-type"].startswith("application/problem+json")
        assert refused.json()["type"].endswith("uninitialised")
        assert "Retry-After" in refused.headers

        done = system.run("reseed")

        assert done.returncode == 0, done.stderr
        assert top(system) == before
        replayed = await client.post("/api/scores/update", json=body)
        assert replayed.json() == {
            "success": True,
            "newScore": answers[old][0].new_score,
            "replayed": True,
        }
        fresh = Update(old.user_id, "win:fresh", 5)
        reply = await client.post(
            "/api/scores/update",
            json={"userId": old.user_id, "actionId": "win:fresh", "points": 5},
        )
        assert reply.json()["newScore"] == expected(updates)[old.user_id] + 5
    check_stores(system, [*updates, fresh])
