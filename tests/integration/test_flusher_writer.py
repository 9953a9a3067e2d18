"""The writer's transaction: the tables do not depend on the batches and repetitions of a stream."""

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flusher.batch import Entry, build
from flusher.writer import Flushed, GapFound, Superseded, Writer
from scoreboard.ledger.positions import Position
from scoreboard.model import Partition
from scoreboard.runtime.settings import Secret, Settings
from tests.support.servers.flushers import query

_boards = itertools.count(1)
Cut = tuple[int, int]


@pytest.fixture
def configured(database_url: str) -> Settings:
    return Settings(redis_url=Secret("redis://none"), database_url=Secret(database_url))


def fresh_board(configured: Settings, *, epoch: int = 1) -> Partition:
    board = f"b{next(_boards)}"
    query(configured, "INSERT INTO boards VALUES (%s, 1, 60, 1, true)", board)
    query(configured, "INSERT INTO flush_state VALUES (%s, 0, %s, 0, '0-0')", board, epoch)
    return Partition(board)


@pytest.fixture
async def writer(configured: Settings) -> AsyncIterator[Writer]:
    writer = await Writer.open(configured, fresh_board(configured))
    yield writer
    await writer.aclose()


def entries_of(deltas: list[tuple[int, int]], *, epoch: int = 1) -> list[Entry]:
    """Return a stream of (user number, delta), one action each."""
    held: dict[int, int] = {}
    entries: list[Entry] = []
    for place, (user, delta) in enumerate(deltas, 1):
        held[user] = held.get(user, 0) + delta
        fields = {
            "q": place,
            "u": f"user{user}",
            "a": f"win:{place}",
            "d": delta,
            "s": held[user],
            "e": epoch,
        }
        entries.append(
            (
                f"{1000 + place}-0".encode(),
                {name.encode(): str(value).encode() for name, value in fields.items()},
            )
        )
    return entries


def tables(configured: Settings, board: str) -> dict[str, list[tuple[object, ...]]]:
    return {
        "ledger": query(
            configured,
            "SELECT user_id, action_id, epoch, seq, delta, score_after, kind, occurred_at"
            " FROM score_events WHERE board = %s ORDER BY seq",
            board,
        ),
        "scores": query(
            configured,
            "SELECT user_id, score, actions, reached_at, last_seq FROM scores"
            " WHERE board = %s ORDER BY user_id",
            board,
        ),
        "position": query(
            configured, "SELECT epoch, seq, stream_id FROM flush_state WHERE board = %s", board
        ),
        "rejected": query(configured, "SELECT 1 FROM rejected_events WHERE board = %s", board),
        "dead": query(configured, "SELECT 1 FROM dead_events WHERE board = %s", board),
    }


@st.composite
def cut_streams(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[Cut]]:
    """Generate a stream and slices that cover it in order; each may overlap the previous one."""
    drawn = draw(
        st.lists(st.tuples(st.integers(0, 4), st.integers(-9, 9)), min_size=1, max_size=30)
    )
    stream: list[tuple[int, int]] = []
    held: dict[int, int] = {}
    for user, delta in drawn:  # a score never becomes negative
        fitting = delta if delta and held.get(user, 0) + delta >= 0 else abs(delta) or 1
        held[user] = held.get(user, 0) + fitting
        stream.append((user, fitting))
    slices: list[Cut] = []
    reached = 0
    while reached < len(stream):
        start = draw(st.integers(0, reached))
        stop = draw(st.integers(start + 1, len(stream)))
        slices.append((start, stop))
        reached = max(reached, stop)
    return stream, slices


def test_the_tables_do_not_depend_on_batches_and_repetitions(configured: Settings) -> None:
    with asyncio.Runner() as runner:
        opened = runner.run(Writer.open(configured, fresh_board(configured)))

        async def write(partition: Partition, entries: list[Entry], cuts: list[Cut]) -> None:
            writer = Writer(opened.connection, partition)
            for start, stop in cuts:
                result = await writer.flush(build(entries[start:stop]), epoch=1)
                assert isinstance(result, Flushed)
                assert (result.drifted, result.late) == (0, 0)

        @given(cut_streams())
        @settings(max_examples=40, deadline=None, database=None)
        def check(case: tuple[list[tuple[int, int]], list[Cut]]) -> None:
            stream, cuts = case
            entries = entries_of(stream)
            whole, cut = fresh_board(configured), fresh_board(configured)

            runner.run(write(whole, entries, [(0, len(entries))]))
            runner.run(write(cut, entries, cuts))

            assert tables(configured, cut.board) == tables(configured, whole.board)

        try:
            check()
        finally:
            runner.run(opened.aclose())


async def test_a_batch_of_another_epoch_is_refused_and_writes_nothing(
    configured: Settings, writer: Writer
) -> None:
    board = f"b{next(_boards) - 1}"
    query(configured, "UPDATE flush_state SET epoch = 2 WHERE board = %s", board)

    result = await writer.flush(build(entries_of([(1, 5)])), epoch=1)

    assert isinstance(result, Superseded)
    assert tables(configured, board)["ledger"] == []


async def test_a_gap_is_refused_unless_gaps_are_skipped(
    configured: Settings, writer: Writer
) -> None:
    batch = build(entries_of([(1, 5), (2, 5), (1, 5)])[1:])

    refused = await writer.flush(batch, epoch=1)
    skipped = await writer.flush(batch, epoch=1, skip_gaps=True)

    assert isinstance(refused, GapFound)
    assert refused.gap.expected == 1
    assert isinstance(skipped, Flushed)
    assert skipped.position == Position(1, 3, "1003-0")
    assert skipped.drifted == 1, "the user's score differs from Redis: the first action is lost"


async def test_the_position_never_decreases(configured: Settings, writer: Writer) -> None:
    entries = entries_of([(1, 5), (2, 5), (1, 5)])
    await writer.flush(build(entries), epoch=1)

    again = await writer.flush(build(entries[:1]), epoch=1)

    assert isinstance(again, Flushed)
    assert (again.counted, again.redelivered) == (0, 1)
    assert await writer.position() == Position(1, 3, "1003-0")


async def test_a_batch_that_lowers_a_score_is_counted(configured: Settings, writer: Writer) -> None:
    """An INSERT of a negative sum would violate the constraint of a score."""
    stream = entries_of([(1, 10), (2, 5), (1, -4), (1, -6), (2, -1)])

    for cut in (stream[:2], stream[2:]):
        result = await writer.flush(build(cut), epoch=1)
        assert isinstance(result, Flushed)
        assert (result.counted, result.dead, result.drifted) == (len(cut), 0, 0)

    scores = query(
        configured,
        "SELECT score, actions, last_seq FROM scores WHERE board = %s ORDER BY score",
        writer.partition.board,
    )
    assert scores == [(0, 3, 4), (4, 2, 5)]


async def test_a_user_without_a_score_cannot_lose_points(
    configured: Settings, writer: Writer
) -> None:
    result = await writer.flush(build(entries_of([(1, 3), (2, 5)])[1:]), epoch=1, skip_gaps=True)
    assert isinstance(result, Flushed)
    lowered = entries_of([(1, 3), (2, 5), (3, 2), (3, -1), (2, -2)])
    bad = [(lowered[3][0], {**lowered[3][1], b"s": b"0"})]

    result = await writer.flush(build([*bad, lowered[4]]), epoch=1, skip_gaps=True)

    assert isinstance(result, Flushed)
    assert (result.counted, result.dead) == (1, 1)
    board = writer.partition.board
    assert query(configured, "SELECT score FROM scores WHERE board = %s", board) == [(3,)]
