"""The board and a plain dict agree after every step of any sequence of calls.

Names of invariants are those of docs/reference/data-model.md.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from scoreboard.model import SCORE_MAX, SLOT_COUNT, unpack_score
from scoreboard.store.keys import COMMITS_PREFIX, GROUP
from tests.support.clients.scripts import KEYS, LAYOUT, Scripts

TRIM = [KEYS.events, KEYS.meta]
USERS = st.sampled_from(["ann", "bob", "cem", "auth0|d", "e" * 128])
ACTIONS = st.sampled_from([f"win:{n}" for n in range(8)] + ["lose:1", "plain"])
DELTAS = st.sampled_from([1, 1, 1, 2, 5, 10, -1, -7, 1_000_000, SCORE_MAX, -SCORE_MAX])
BATCHES = st.lists(st.tuples(USERS, ACTIONS, DELTAS, st.booleans()), min_size=1, max_size=6)


class BoardMachine(RuleBasedStateMachine):
    """Submits, repeats, fences, fills, trims and reopens a partition; a dict is the model."""

    client: "redis.Redis[str]"

    @initialize()
    def start(self) -> None:
        self.client.flushall()
        self.scripts = Scripts(self.client, is_real=True)
        self.scripts.open()
        self.epoch, self.seq = 1, 0
        self.is_open = True
        self.cap = self.scripts.cap = 20
        self.scores: dict[str, int] = {}
        self.arrivals: dict[str, int] = {}
        self.memory: dict[tuple[str, str], tuple[int, int, int]] = {}
        self.stream: list[tuple[int, str, int]] = []

    def expect(self, user: str, action: str, delta: int, *, stated: bool) -> list[Any]:
        """Return the expected answer of submit.lua to an action, and apply it to the model."""
        if (user, action) in self.memory:
            first, score, seq = self.memory[user, action]
            is_conflict = stated and first != delta
            return ["conflict" if is_conflict else "replayed", first, score, seq]
        held = self.scores.get(user, 0)
        if len(self.stream) >= self.cap:
            return ["busy", delta, held, 0]
        if not 0 <= held + delta <= SCORE_MAX:
            return ["range", delta, held, 0]
        self.seq += 1
        self.scores[user] = held + delta
        self.arrivals[user] = self.seq
        self.memory[user, action] = (delta, held + delta, self.seq)
        self.stream.append((self.seq, user, delta))
        return ["applied", delta, held + delta, self.seq]

    @rule(batch=BATCHES)
    def submit(self, batch: list[tuple[str, str, int, bool]]) -> None:
        if not self.is_open:
            before = self.scripts.snapshot()
            keys, args = self.scripts.submit_call(*batch)
            assert self.scripts.refuses("submit", keys, *args).startswith("FENCED ")  # I9
            assert self.scripts.snapshot() == before
            return
        expected = [self.expect(u, a, d, stated=stated) for u, a, d, stated in batch]
        assert (
            self.scripts.submit(*((u, a, d, int(stated)) for u, a, d, stated in batch)) == expected
        )

    @rule()
    def fence(self) -> None:
        assert self.scripts.fence("T") == [self.epoch, self.seq]
        self.is_open = False

    @rule(count=st.integers(1, 10))
    def flush(self, count: int) -> None:
        """Deliver, acknowledge and trim, as the flusher does after its COMMIT."""
        got = self.client.xreadgroup(GROUP, "one", {KEYS.events: ">"}, count=count)
        if got:
            ids = [position for position, _ in got[0][1]]
            first, last = self.stream[0][0], self.stream[len(ids) - 1][0]
            args = (
                GROUP,
                self.scripts.history,
                self.epoch,
                ids[-1],
                first,
                last,
                COMMITS_PREFIX + "main",
                *ids,
            )
            assert self.scripts.run("trim", TRIM, *args)[0] == len(ids)
            del self.stream[: len(ids)]

    @rule()
    def reseed(self) -> None:
        """Drain, then rebuild the same history under a new epoch."""
        self.flush(10_000)
        self.scripts.fence("T")
        ranked = sorted(self.scores, key=lambda user: (self.scores[user], self.arrivals[user]))
        slots: dict[int, int] = {}
        page: list[object] = []
        for user in ranked:
            score = self.scores[user]
            slots[score] = slots.get(score, SLOT_COUNT) - 1
            page += [score * SLOT_COUNT + slots[score], user]
        self.scripts.run("restore", [KEYS.meta, KEYS.shadow], "T", 1, *page)
        self.epoch += 1
        self.scripts.run(
            "open",
            [KEYS.board, KEYS.shadow, KEYS.events, KEYS.meta, KEYS.changes],
            *("T", self.epoch, self.seq, "0-0", GROUP, str(LAYOUT), 1, len(ranked)),
        )
        self.is_open = True

    @invariant()
    def scores_and_order_agree(self) -> None:
        """Rank by score, then by arrival (I3, and the order of equal scores)."""
        if not hasattr(self, "scores"):
            return
        ranked = sorted(self.scores, key=lambda user: (-self.scores[user], self.arrivals[user]))
        board = [(user, unpack_score(packed)) for user, packed in self.scripts.board()]
        assert board == [(user, self.scores[user]) for user in ranked]

    @invariant()
    def the_stream_contains_the_unflushed_actions(self) -> None:
        """Every applied action once, dense and in order (I4, I6); never beyond the cap (I7)."""
        if not hasattr(self, "stream"):
            return
        events = [(int(e["q"]), e["u"], int(e["d"])) for e in self.scripts.events()]
        assert events == self.stream
        assert len(events) <= self.cap

    @invariant()
    def every_seen_key_expires(self) -> None:
        """Every seen key has a time to live (I7)."""
        if not hasattr(self, "stream"):
            return
        assert all(self.client.ttl(key) > 0 for key in self.client.keys("*:seen:*"))


@pytest.fixture
def machine(redis_url: str) -> Iterator[type[BoardMachine]]:
    with redis.Redis.from_url(redis_url) as client:
        yield type("Machine", (BoardMachine,), {"client": client})


def test_the_board_equals_a_dict(machine: type[BoardMachine]) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
