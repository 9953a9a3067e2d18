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

from scoreboard.model import SCORE_MAX, SLOT_COUNT, digest_of, shard_of, unpack_score
from scoreboard.store.keys import COMMITS_PREFIX, GROUP
from tests.support.clients.scripts import KEYS, LAYOUT, Scripts, text

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
        self.banned: set[str] = set()

    def expect(self, user: str, action: str, delta: int, *, stated: bool) -> list[Any]:
        """Return the expected answer of submit.lua to an action, and apply it to the model."""
        if (user, action) in self.memory:
            first, score, seq = self.memory[user, action]
            is_conflict = stated and first != delta
            return ["conflict" if is_conflict else "replayed", first, score, seq]
        held = self.scores.get(user, 0)
        if user in self.banned:
            return ["banned", delta, 0, 0]
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

    @rule(user=USERS, number=st.integers(0, 3), delta=DELTAS)
    def act(self, user: str, number: int, delta: int) -> None:
        """An administrator changes a score, also of a banned user, and repeats the act."""
        action = f"act:{number}"
        digest, generation = digest_of("main", user, action), self.scripts.generation
        shard = shard_of(digest, LAYOUT.seen_shards)
        keys = [KEYS.board, KEYS.events, KEYS.meta, KEYS.changes, KEYS.banned]
        keys += [KEYS.dedup_shard(generation + step, shard) for step in (1, 0, -1)]
        args = (generation, str(LAYOUT), self.cap, user, action, digest, delta, 0, SCORE_MAX, -1)
        is_known = (user, action) in self.memory
        held = self.scores.get(user, 0)
        before = self.scripts.snapshot()
        if not self.is_open:
            assert self.scripts.refuses("act", keys, *args).startswith("FENCED ")
        elif not is_known and 0 <= held + delta <= SCORE_MAX and len(self.stream) >= self.cap:
            assert self.scripts.refuses("act", keys, *args).startswith("LAG ")
        else:
            was_banned = user in self.banned
            self.banned.discard(user)
            expected = self.expect(user, action, delta, stated=False)
            if was_banned:
                self.banned.add(user)
            if expected[0] == "busy":
                expected[0] = "range"
            word, *numbers = self.scripts.run("act", keys, *args)
            assert [text(word), *numbers] == expected
            if expected[0] == "applied":
                return
        assert self.scripts.snapshot() == before

    @rule(user=USERS, is_banned=st.booleans())
    def ban(self, user: str, is_banned: bool) -> None:
        """A ban, its end, or a correction that changes nothing; the place among equals is kept."""
        if not self.is_open or len(self.stream) >= self.cap:
            return
        score = self.scores.get(user, -1)
        equals = [
            one
            for one in sorted(self.arrivals, key=lambda one: self.arrivals[one])
            if self.scores[one] == score
        ]
        last = self.client.xrevrange(KEYS.events, count=1)
        committed = self.stream[0][0] - 1 if self.stream else self.seq
        row = self.scripts.run(
            "repair",
            [KEYS.board, KEYS.events, KEYS.meta, KEYS.changes, KEYS.banned],
            *(self.scripts.history, self.epoch, committed, last[0][0] if last else "0-0", 0, ""),
            *(user, score, int(is_banned), len(equals), *equals),
        )[0]
        is_same = is_banned == (user in self.banned)
        assert text(row[0]) == ("unchanged" if is_same else "corrected")
        assert row[1] == 0
        if not is_same and score >= 0:  # the board changes, so viewers need another position
            self.seq += 1
            self.stream.append((self.seq, user, (-1 if is_banned else 1) * max(score, 1)))
        (self.banned.add if is_banned else self.banned.discard)(user)

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
        kept: list[object] = []
        for user in self.banned:
            kept += [user, self.scores.get(user, -1)]
        self.scripts.run("exclude", [KEYS.meta, KEYS.banned], "T", 1, *kept)
        ranked = [user for user in ranked if user not in self.banned]
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
        shown = self.scores.keys() - self.banned
        ranked = sorted(shown, key=lambda user: (-self.scores[user], self.arrivals[user]))
        board = [(user, unpack_score(packed)) for user, packed in self.scripts.board()]
        assert board == [(user, self.scores[user]) for user in ranked]
        kept = {text(user): int(score) for user, score in self.client.hgetall(KEYS.banned).items()}
        assert kept == {user: self.scores.get(user, -1) for user in self.banned}

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
