"""Opens boards the way a reseed does: board row, fence, shadow, open."""

from collections.abc import Sequence

from scoreboard.model import SLOT_COUNT, Board, Partition, pack
from scoreboard.seasons import season_at
from scoreboard.store.store import Store


async def fence(store: Store, partition: Partition, token: str) -> tuple[int, int]:
    """Fence a partition in its current state, with a token."""
    return await store.fence(partition, token, await store.state(partition))


async def open_board(
    store: Store,
    board: Board | None = None,
    *,
    scores: Sequence[tuple[str, int]] = (),
    epoch: int | None = None,
) -> Board:
    """Open every partition of a board (default: ``main``, public), optionally with scores.

    ``scores`` go to partition 0, one slot each in the order given; use them with one partition.
    ``epoch`` is the next one by default.
    """
    board = board or Board()
    for number in range(board.layout.partitions):
        first = scores if number == 0 else ()
        await open_partition(store, board, number, scores=first, epoch=epoch)
    return board


async def open_partition(
    store: Store,
    board: Board,
    number: int,
    *,
    scores: Sequence[tuple[str, int]] = (),
    epoch: int | None = None,
) -> None:
    """Open one partition of a board, with scores, one slot each in the order given."""
    partition = Partition(board.name, number)
    last, seq = await fence(store, partition, "test")
    page = [
        (pack(score, SLOT_COUNT - 1 - place), user) for place, (user, score) in enumerate(scores)
    ]
    await store.restore(partition, "test", page, first=True)
    rules = board.layout.rules
    await store.open(
        partition,
        "test",
        board,
        epoch=last + 1 if epoch is None else epoch,
        seq=seq,
        stream_id="0-0",
        members=len(page),
        season=str(season_at(rules, await store.now_s())) if rules.season else "",
    )
