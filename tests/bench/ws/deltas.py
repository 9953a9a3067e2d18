"""Bytes per change of a board: a whole board against a delta, with UUIDs as user ids.

``python -m tests.bench.ws.deltas`` prints a table. Each change raises the score of a random user of
the window: by little, so that about one in ten changes ranks, or by much, so that the user passes
several others. Sizes include the header of the WebSocket frame. Every 20th frame is whole. It also
measures the process's time to build a frame, which it does once for all viewers.
"""

import random
import statistics
import time
import uuid
from collections.abc import Iterator

from scoreboard.broadcast.messages import Leaderboard
from scoreboard.model import Row, Span
from streamer.fanout.hub import Channel

CHANGES = 2000
SIZES = (10, 100)
STEP = 100
"""Points between two neighbours at the start."""
GAINS = {"a score, rarely a rank": (1, 20), "a score and several ranks": (200, 2000)}


class Compact:
    """A viewer that is sent every frame."""

    is_compact = True

    def __init__(self, channel: Channel) -> None:
        self.index = -1
        self.channel = channel
        self.sent = channel.frame
        self.sizes: list[int] = []
        channel.add(self)

    def push(self) -> None:
        """Record the size of what is sent."""
        self.sizes.append(len(self.channel.next_for(self.sent)))
        self.sent = self.channel.frame

    def push_heartbeat(self, frame: bytes) -> None:
        """Do nothing."""


def boards(rows: int, gain: tuple[int, int]) -> Iterator[Leaderboard]:
    """Yield the boards after each change."""
    chance = random.Random(rows)
    scores = {str(uuid.UUID(int=chance.getrandbits(128))): STEP * n for n in range(1, rows + 1)}
    users = list(scores)
    for seq in range(1_000_000, 1_000_000 + CHANGES):
        scores[chance.choice(users)] += chance.randint(*gain)
        ranking = sorted(scores.items(), key=lambda one: -one[1])
        found = tuple(Row(rank, user, score) for rank, (user, score) in enumerate(ranking, 1))
        yield Leaderboard("main", 3, seq, time.time_ns() // 1_000_000, found)


def measure(rows: int, gain: tuple[int, int], *, is_compact: bool) -> tuple[float, float]:
    """Return bytes per change, and µs to build a frame."""
    channel = Channel("main", lambda: None, Span(0, rows))
    viewer: Compact | None = None
    took: list[int] = []
    sizes: list[int] = []
    for board in boards(rows, gain):
        began_ns = time.thread_time_ns()
        channel.publish(board, 0.0, 0.0)
        took.append(time.thread_time_ns() - began_ns)
        sizes.append(len(channel.frame))
        if is_compact and viewer is None:
            viewer = Compact(channel)
        channel.run_turn(1, lambda: 0.0, 1.0)
    return statistics.fmean(viewer.sizes if viewer else sizes), statistics.median(took) / 1000


def main() -> None:
    """Print the table."""
    print("| rows | what changes | whole board, bytes | delta, bytes | delta ÷ whole | µs | µs |")
    print("|---|---|---|---|---|---|---|")
    for rows in SIZES:
        for what, gain in GAINS.items():
            whole, whole_us = measure(rows, gain, is_compact=False)
            delta, delta_us = measure(rows, gain, is_compact=True)
            print(
                f"| {rows} | {what} | {whole:,.0f} | {delta:,.0f} | {delta / whole:.2f} "
                f"| {whole_us:.0f} | {delta_us:.0f} |"
            )


if __name__ == "__main__":
    main()
