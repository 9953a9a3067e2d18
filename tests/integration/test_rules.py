"""Boards with rules on the whole way: api's dispatcher, flusher, verify, repair and reseed."""

import itertools
from contextlib import aclosing
from typing import Any

import pytest
import redis

from flusher.batch import build
from flusher.writer import Flushed, SeqsReused, Writer
from scoreboard.errors import ActionConflict, OperatorMistake, ScoreOutOfRange, Uninitialised
from scoreboard.ledger.pool import connect
from scoreboard.ledger.scores import select_ranking, select_top
from scoreboard.model import SLOT_COUNT, Action, Board, Layout, Partition, Receipt, Rules
from scoreboard.recovery.repair import repair
from scoreboard.recovery.reseed import SESSION, report_nothing, reseed
from scoreboard.recovery.verify import Verdict, verify
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.client import make_client
from scoreboard.store.keys import PartitionKeys
from tests.support.eventually import eventually_async
from tests.support.servers.flushers import (
    act,
    check_invariants,
    dispatching,
    flushing,
    is_drained,
    make_board,
    query,
    store_of,
)

pytestmark = pytest.mark.slow

KEYS = PartitionKeys(Partition("main"))
COUNTER = itertools.count()
EVERY = [
    Rules(operator, order, 0, 1000, "players", "stated")
    for operator in ("add", "best", "last")
    for order in ("highest", "lowest")
]


@pytest.fixture
def settings(redis_url: str, database_url: str) -> Settings:
    return Settings(
        redis_url=Secret(redis_url), database_url=Secret(database_url), flusher_metrics_port=0
    )


async def verified(settings: Settings, board: Board) -> Verdict:
    client = make_client(settings, name="test")
    try:
        async with await connect(settings, name="test", **SESSION) as connection:
            return await verify(client, connection, board, sample=None, report=report_nothing)
    finally:
        await client.aclose()


async def reseeded(settings: Settings, board: Board) -> None:
    connection = await connect(settings, name="test", **SESSION)
    async with store_of(settings) as store, connection:
        numbers = list(range(board.layout.partitions))
        await reseed(store, connection, board, numbers, actor="test")


def stated(rules: Rules, user: str, action: str, number: int) -> Action:
    return Action(user, action, number, stated=True, rules=rules)


def numbers_of(rules: Rules) -> dict[str, list[int]]:
    """Return what each of some users states, with ties."""
    return {f"user-{n:02}": [50 + n % 3, 20 + n % 5, 30 + n % 4] for n in range(24)}


def expected_score(rules: Rules, numbers: list[int]) -> int:
    match rules.operator:
        case "add":
            return sum(numbers)
        case "best":
            return max(numbers) if rules.order == "highest" else min(numbers)
        case "last":
            return numbers[-1]


async def play(settings: Settings, board: Board) -> dict[str, int]:
    """Let users act; return the expected scores."""
    rules = board.layout.rules
    numbers = numbers_of(rules)
    for turn in range(3):
        actions = [stated(rules, u, f"win:{turn}", n[turn]) for u, n in numbers.items()]
        receipts = await act(settings, *actions)
        assert not [one for one in receipts if not isinstance(one, Receipt)], receipts
    return {user: expected_score(rules, each) for user, each in numbers.items()}


async def drained(settings: Settings, board: Board) -> None:
    async with flushing(settings):
        await eventually_async(
            lambda: is_drained(settings, partitions=board.layout.partitions), within_s=30
        )


@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize("rules", EVERY, ids=str)
async def test_a_board_is_right_in_both_stores_before_and_after_a_reseed(
    rules: Rules, partitions: int, settings: Settings
) -> None:
    board = await make_board(settings, Board("main", Layout(partitions, 600, 4, rules)))
    expected = await play(settings, board)

    await drained(settings, board)

    check_invariants(settings, partitions=partitions, rules=rules)
    verdict = await verified(settings, board)
    assert verdict.is_sound, verdict
    assert verdict.suspects == 0, "no user is compared again while commits wait"
    async with store_of(settings) as store:
        before = await store.leaderboard("main", limit=100)
    scores = {row.user_id: row.score for row in before.rows}
    assert scores == expected
    ordered = [row.score for row in before.rows]
    assert ordered == sorted(ordered, reverse=rules.order == "highest")
    with redis.Redis.from_url(settings.redis_url.reveal()) as client:
        client.flushall()
    await reseeded(settings, board)
    async with store_of(settings) as store:
        after = await store.leaderboard("main", limit=100)
        assert after.rows == before.rows
        for row in after.rows[:3] + after.rows[-3:]:
            standing = await store.standing("main", row.user_id, around=2)
            assert (standing.rank, standing.score) == (row.rank, row.score)
            assert row in standing.neighbours
    assert (await verified(settings, board)).is_sound


@pytest.mark.parametrize("rules", EVERY, ids=str)
async def test_an_action_in_the_ledger_gets_its_first_answer_after_a_reseed(
    rules: Rules, settings: Settings
) -> None:
    board = await make_board(settings, Board("main", Layout(1, 600, 4, rules)))
    first = stated(rules, "ann", "a", 40)
    better = stated(rules, "ann", "b", 60 if rules.order == "highest" else 30)
    (one, two) = [(await act(settings, action))[0] for action in (first, better)]
    assert isinstance(one, Receipt)
    assert isinstance(two, Receipt)
    await drained(settings, board)

    await reseeded(settings, board)

    for action, receipt in ((first, one), (better, two)):
        (again,) = await act(settings, action)
        assert again == Receipt(receipt.score, receipt.seq, replayed=True, committed=True)
    other = stated(rules, "ann", "b", 61)
    (conflict,) = await act(settings, other)
    assert isinstance(conflict, ActionConflict)


@pytest.mark.parametrize("rules", EVERY, ids=str)
async def test_a_late_duplicate_counts_once_on_every_board(
    rules: Rules, settings: Settings
) -> None:
    board = await make_board(settings, Board("main", Layout(1, 600, 4, rules)))
    await act(settings, stated(rules, "ann", "a", 40), stated(rules, "bob", "a", 45))
    await act(settings, stated(rules, "ann", "b", 45))
    async with flushing(settings):
        await eventually_async(lambda: is_drained(settings), within_s=30)
        with redis.Redis.from_url(settings.redis_url.reveal()) as client:
            before = client.zrange(KEYS.board, 0, -1, desc=True, withscores=True)
            client.delete(*client.keys("*:seen:*"))  # as after the dedup window
            await act(settings, stated(rules, "ann", "a", 40))

            def is_corrected() -> bool:
                after = client.zrange(KEYS.board, 0, -1, desc=True, withscores=True)
                return [u for u, _ in after] == [u for u, _ in before] and all(
                    int(now) // SLOT_COUNT == int(then) // SLOT_COUNT
                    for (_, now), (_, then) in zip(after, before, strict=True)
                )

            await eventually_async(is_corrected, within_s=30)
        await eventually_async(lambda: is_drained(settings), within_s=30)
    check_invariants(settings, rules=rules)
    assert (await verified(settings, board)).is_sound


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([5], 5),  # from the wrong score 100 down to 5: the sum would have been negative
        ([60, 70], 70),
        ([8], 8),  # what the ledger has: the difference is 0 there
        ([8, 30, 8], 8),
    ],
)
async def test_a_value_after_a_late_duplicate_is_the_score(
    numbers: list[int], expected: int, settings: Settings
) -> None:
    """Incident: differences were computed from a score that the ledger did not have."""
    rules = Rules("last", "highest", points="stated")
    board = await make_board(settings, Board("main", Layout(1, 600, 4, rules)))
    await act(settings, stated(rules, "ann", "a", 100))
    await act(settings, stated(rules, "ann", "b", 8))
    await drained(settings, board)
    with redis.Redis.from_url(settings.redis_url.reveal()) as client:
        client.delete(*client.keys("*:seen:*"))  # as after the dedup window
    late = await act(settings, stated(rules, "ann", "a", 100))
    assert late == [Receipt(100, 3, replayed=False)]
    for number in numbers:
        await act(settings, stated(rules, "ann", f"c{next(COUNTER)}", number))

    await drained(settings, board)

    async with store_of(settings) as store:
        assert (await store.standing("main", "ann")).score == expected
    check_invariants(settings, rules=rules)
    verdict = await verified(settings, board)
    assert verdict.is_sound, verdict
    assert not query(settings, "SELECT FROM dead_events")
    await reseeded(settings, board)
    async with store_of(settings) as store:
        assert (await store.standing("main", "ann")).score == expected


@pytest.mark.parametrize(
    ("order", "numbers"), [("highest", (50, 20, 30)), ("lowest", (20, 50, 30))]
)
async def test_a_value_after_a_loss_of_data_does_not_replace_a_better_one(
    order: Any, numbers: tuple[int, int, int], settings: Settings
) -> None:
    """Incident: a difference from an older score in Redis was added to the ledger's score."""
    best, older, between = numbers
    rules = Rules("best", order, points="stated")
    board = await make_board(settings, Board("main", Layout(1, 600, 4, rules)))
    await act(settings, stated(rules, "ann", "a", best))
    await drained(settings, board)
    with redis.Redis.from_url(settings.redis_url.reveal()) as client:
        client.zadd(KEYS.board, {"ann": rules.pack(older, 0)})  # as after a loss
    (receipt,) = await act(settings, stated(rules, "ann", "b", between))
    assert isinstance(receipt, Receipt)
    assert receipt.score == between

    async with flushing(settings):

        async def is_right() -> bool:
            async with store_of(settings) as store:
                return (await store.standing("main", "ann")).score == best

        await eventually_async(is_right, within_s=30)
        await eventually_async(lambda: is_drained(settings), within_s=30)
    check_invariants(settings, rules=rules)
    assert (await verified(settings, board)).is_sound


async def test_a_batch_that_was_committed_counts_no_value_again(settings: Settings) -> None:
    rules = Rules("last", "highest", points="stated")
    board = await make_board(settings, Board("main", Layout(1, 600, 4, rules)))
    await act(settings, stated(rules, "ann", "a", 100))
    await act(settings, stated(rules, "ann", "b", 8))
    await drained(settings, board)
    with redis.Redis.from_url(settings.redis_url.reveal()) as client:
        client.delete(*client.keys("*:seen:*"))
    for action, number in (("a", 100), ("c", 8), ("d", 50)):
        await act(settings, stated(rules, "ann", action, number))
    with redis.Redis.from_url(settings.redis_url.reveal()) as client:
        batch = build(client.xrange(KEYS.events))
    async with aclosing(await Writer.open(settings, Partition("main"))) as writer:
        first = await writer.flush(batch, epoch=1)
        again = await writer.flush(batch, epoch=1)

    assert isinstance(first, Flushed)
    assert isinstance(again, Flushed)
    assert (first.counted, first.late) == (1, 2)
    assert (again.counted, again.late) == (0, 0)
    assert query(settings, "SELECT score FROM scores") == [(50,)]


async def test_a_value_that_changes_nothing_shows_that_redis_is_older(settings: Settings) -> None:
    """Redis has lost a better value, and its seq is used again."""
    rules = Rules("best", "lowest", points="stated")
    board = await make_board(settings, Board("main", Layout(1, 600, 4, rules)))
    await act(settings, stated(rules, "ann", "a", 8))
    await drained(settings, board)
    with redis.Redis.from_url(settings.redis_url.reveal()) as client:
        client.delete(KEYS.board, *client.keys("*:seen:*"))
        client.hset(KEYS.meta, "seq", 0)
    await act(settings, stated(rules, "ann", "b", 9))
    with redis.Redis.from_url(settings.redis_url.reveal()) as client:
        batch = build(client.xrange(KEYS.events))
    async with aclosing(await Writer.open(settings, Partition("main"))) as writer:
        for _ in range(2):
            assert await writer.flush(batch, epoch=1) == SeqsReused()
        drained_after = [await writer.flush(batch, epoch=1, skip_gaps=True) for _ in range(2)]

    counts = [(one.counted, one.late) for one in drained_after if isinstance(one, Flushed)]
    assert counts == [(0, 1), (0, 0)], "once the partition is fenced"


@pytest.mark.parametrize("rules", EVERY, ids=str)
async def test_verify_finds_a_wrong_score_and_repair_corrects_it(
    rules: Rules, settings: Settings
) -> None:
    board = await make_board(settings, Board("main", Layout(1, 600, 4, rules)))
    await play(settings, board)
    await drained(settings, board)
    with redis.Redis.from_url(settings.redis_url.reveal()) as client:
        order = client.zrange(KEYS.board, 0, -1, desc=True)
        client.zadd(KEYS.board, {"user-07": rules.pack(999, 0), "ghost": rules.pack(5, 0)})

    found = await verified(settings, board)
    assert {(one.user_id, one.redis) for one in found.drifted} == {("user-07", 999), ("ghost", 5)}
    connection = await connect(settings, name="test", **SESSION)
    async with store_of(settings) as store, connection:
        await repair(store, connection, board, found.drifted, actor="test", report=report_nothing)

    await drained(settings, board)
    assert (await verified(settings, board)).is_sound
    with redis.Redis.from_url(settings.redis_url.reveal()) as client:
        assert client.zrange(KEYS.board, 0, -1, desc=True) == order, "in its place among equals"


@pytest.mark.parametrize("order", ["highest", "lowest"])
async def test_postgresql_ranks_as_redis_does(order: Any, settings: Settings) -> None:
    rules = Rules("best", order, points="stated")
    board = await make_board(settings, Board("main", Layout(1, 600, 4, rules)))
    await play(settings, board)
    await drained(settings, board)

    async with store_of(settings) as store:
        window = await store.leaderboard("main", limit=100)
    async with await connect(settings, name="test", **SESSION) as connection:
        top = await select_top(connection, "main", 100)
        async with connection.transaction():
            pages = select_ranking(connection, "main", page=7)
            ranking = [row async for page in pages for row in page]
    assert [(row.user_id, row.score) for row in window.rows] == ranking
    assert [(row.user_id, row.score) for row in top] == ranking


async def test_a_caller_that_assumes_other_rules_is_refused(settings: Settings) -> None:
    """Incident: a number of the catalogue would have become the value of the user."""
    rules = Rules("best", "lowest", points="stated")
    await make_board(settings, Board("main", Layout(1, 600, 4, rules)))

    async with dispatching(settings) as dispatcher:
        with pytest.raises(Uninitialised):
            await dispatcher.submit("main", Action("ann", "win:1", 10))
        receipt = await dispatcher.submit("main", stated(rules, "ann", "win:1", 30))
        with pytest.raises(Uninitialised):
            await dispatcher.submit("main", Action("ann", "win:2", 10))

    assert receipt == Receipt(30, 1, replayed=False)
    with redis.Redis.from_url(settings.redis_url.reveal()) as client:
        assert client.xlen(KEYS.events) == 1


async def test_refusals_say_what_the_board_takes(settings: Settings) -> None:
    rules = Rules("best", "lowest", 0, 500, points="stated")
    await make_board(settings, Board("main", Layout(1, 600, 4, rules)))

    async with dispatching(settings) as dispatcher:
        with pytest.raises(ScoreOutOfRange, match="it must be 0 to 500"):
            await dispatcher.submit("main", stated(rules, "ann", "1", 501))
        with pytest.raises(ScoreOutOfRange, match="first value"):
            await dispatcher.submit("main", stated(rules, "ann", "1", 0))
        await dispatcher.submit("main", stated(rules, "ann", "1", 7))
        with pytest.raises(ActionConflict, match="another value"):
            await dispatcher.submit("main", stated(rules, "ann", "1", 8))


async def test_a_reseed_refuses_other_rules(settings: Settings) -> None:
    rules = Rules("best", "lowest", points="stated")
    board = await make_board(settings, Board("main", Layout(1, 600, 4, rules)))
    await act(settings, stated(rules, "ann", "1", 7))
    await drained(settings, board)
    query(settings, "UPDATE boards SET operator = 'add' WHERE board = 'main'")
    changed = Board("main", Layout(1, 600, 4, Rules("add", "lowest", points="stated")))

    with pytest.raises(OperatorMistake, match="other rules"):
        await reseeded(settings, changed)

    query(settings, "UPDATE boards SET operator = 'best' WHERE board = 'main'")
    async with store_of(settings) as store:
        assert (await store.state(Partition("main"))).is_open


@pytest.mark.parametrize("rules", EVERY, ids=str)
async def test_a_reseed_to_another_layout_keeps_the_rules(rules: Rules, settings: Settings) -> None:
    board = await make_board(settings, Board("main", Layout(1, 600, 4, rules)))
    expected = await play(settings, board)
    await drained(settings, board)
    query(settings, "UPDATE boards SET partitions = 3 WHERE board = 'main'")

    await reseeded(settings, Board("main", Layout(3, 600, 4, rules)))

    async with store_of(settings) as store:
        window = await store.leaderboard("main", limit=100)
        assert (await store.board("main")).layout == Layout(3, 600, 4, rules)
    assert {row.user_id: row.score for row in window.rows} == expected
    (receipt,) = await act(settings, stated(rules, "new", "1", 33))
    assert isinstance(receipt, Receipt)


@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize("users", [1, 2, 3, 12])
async def test_list_and_standing_agree_at_the_borders_of_a_lowest_board(
    users: int, partitions: int, settings: Settings
) -> None:
    """Incident elsewhere: reading a board from its low end returned nothing, or another rank."""
    rules = Rules("best", "lowest", points="stated")
    await make_board(settings, Board("main", Layout(partitions, 600, 4, rules)))
    names = [f"user-{n:02}" for n in range(users)]
    await act(settings, *(stated(rules, name, "a", 10 + n // 2) for n, name in enumerate(names)))

    async with store_of(settings) as store:
        whole = await store.leaderboard("main", limit=100)
        assert [row.rank for row in whole.rows] == list(range(1, users + 1))
        assert [row.score for row in whole.rows] == sorted(10 + n // 2 for n in range(users))
        for row in whole.rows:
            page = await store.leaderboard("main", offset=row.rank - 1, limit=1)
            assert page.rows == (row,)
            standing = await store.standing("main", row.user_id, around=1)
            assert (standing.rank, standing.score) == (row.rank, row.score)
            first = max(0, min(row.rank - 2, users - 3))
            assert standing.neighbours == whole.rows[first : first + 3]
        beyond = await store.leaderboard("main", offset=users, limit=10)
        assert (beyond.rows, beyond.total) == ((), users)
