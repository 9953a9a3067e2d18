"""Boards of every operator, order and bounds agree with a plain model after any sequence of steps.

The model has the ledger too: a flush counts each action once, a repeat after the dedup window is
refused by it, and a repair sets Redis to the ledger plus what is not flushed. With limits, some
actions are held: they change no score, and never count.
"""

from itertools import pairwise
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from scoreboard.model import (
    NO_LIMITS,
    SCORE_MAX,
    SLOT_COUNT,
    Limits,
    Rules,
    digest_of,
    shard_of,
)
from scoreboard.store.keys import COMMITS_PREFIX, GROUP
from tests.support.clients.scripts import KEYS, Scripts

TRIM = [KEYS.events, KEYS.meta]
REPAIR = [KEYS.board, KEYS.events, KEYS.meta, KEYS.changes, KEYS.banned]
USERS = st.sampled_from(["ann", "bob", "cem", "dan"])
ACTIONS = st.sampled_from([f"win:{n}" for n in range(10)])
NUMBERS = st.sampled_from([0, 1, 2, 5, 9, 10, 11, 49, 50, 51, 1000, SCORE_MAX, -1, -7, -SCORE_MAX])
BATCHES = st.lists(st.tuples(USERS, ACTIONS, NUMBERS, st.booleans()), min_size=1, max_size=6)
Answer = tuple[int, int, int, int]
"""Delta, score, seq and stated number of an action."""


class RulesMachine(RuleBasedStateMachine):
    """One partition with rules, its ledger, and their model."""

    client: "redis.Redis[str]"
    board_rules: Rules
    limits: Limits = NO_LIMITS

    @initialize()
    def start(self) -> None:
        self.client.flushall()
        self.scripts = Scripts(self.client, is_real=True)
        self.scripts.use_rules(self.board_rules)
        self.scripts.open()
        self.epoch, self.seq, self.flushed, self.flushed_id = 1, 0, 0, "0-0"
        self.scores: dict[str, int] = {}
        self.arrivals: dict[str, int] = {}
        self.memory: dict[tuple[str, str], Answer] = {}
        self.stream: list[tuple[int, str, str, int, int]] = []
        """Seq, user, action, delta and score after of each entry."""
        self.late: set[str] = set()
        """Users whose score in Redis includes something that the ledger refused."""
        self.numbers: dict[int, int] = {}
        self.ledger: dict[tuple[str, str], int] = {}
        self.counted: dict[str, int] = {}
        self.answers: dict[tuple[str, str], Answer] = {}
        """Of each action in the ledger, what a reseed restores."""
        self.acts = 0
        self.held: set[int] = set()
        """Seqs of held actions."""
        self.held_memory: set[tuple[str, str]] = set()
        """Which remembered actions were held."""
        self.quarantine: dict[tuple[str, str], Answer] = {}
        """The held actions that the flusher has recorded."""
        self.gained: dict[str, int] = {}
        self.scripts.run("configure", [KEYS.meta, KEYS.changes], 1, "open", str(self.limits))

    def exceeds(self, user: str, delta: int) -> bool:
        """Return whether a change is held."""
        gain = delta if self.board_rules.order == "highest" else -delta
        limits, is_counted = self.limits, not self.board_rules.takes_values
        if gain <= 0:
            return False
        if limits.per_action and gain > limits.per_action:
            return True
        if not is_counted or not limits.per_window:
            return False
        if self.gained.get(user, 0) + gain > limits.per_window:
            return True
        self.gained[user] = self.gained.get(user, 0) + gain
        return False

    def expect(self, user: str, action: str, number: int, *, stated: bool) -> list[Any]:
        """Return the expected answer to an action, and apply it to the model."""
        rules = self.board_rules
        if (user, action) in self.memory:
            delta, score, seq, first = self.memory[user, action]
            is_conflict = stated and first != number
            again = "held_before" if (user, action) in self.held_memory else "replayed"
            return ["conflict" if is_conflict else again, delta, score, seq]
        held = self.scores.get(user)
        goal = number if rules.takes_values else (held or 0) + number
        is_first_zero = held is None and goal == 0 and rules.order == "lowest"
        if not rules.score_min <= goal <= rules.score_max or is_first_zero:
            return ["range", number, held or 0, 0]
        if rules.operator == "best" and held is not None:
            goal = max(held, goal) if rules.order == "highest" else min(held, goal)
        delta = goal - (held or 0)
        self.held_memory.discard((user, action))
        if self.exceeds(user, delta):
            self.seq += 1
            self.held.add(self.seq)
            self.held_memory.add((user, action))
            self.stream.append((self.seq, user, action, delta, held or 0))
            self.numbers[self.seq] = number
            self.memory[user, action] = (delta, held or 0, self.seq, number)
            return ["held", delta, held or 0, self.seq]
        if delta:
            self.seq += 1
            self.scores[user], self.arrivals[user] = goal, self.seq
            self.stream.append((self.seq, user, action, delta, goal))
            self.numbers[self.seq] = number
        self.memory[user, action] = (delta, goal, self.seq, number)
        return ["applied", delta, goal, self.seq]

    @rule(batch=BATCHES)
    def submit(self, batch: list[tuple[str, str, int, bool]]) -> None:
        if not self.board_rules.takes_values:
            batch = [(u, a, n or 1, stated) for u, a, n, stated in batch]
        expected = [self.expect(u, a, n, stated=stated) for u, a, n, stated in batch]
        assert self.scripts.submit(*((u, a, n, int(s)) for u, a, n, s in batch)) == expected

    @rule(user=USERS, delta=NUMBERS)
    def act(self, user: str, delta: int) -> None:
        """An administrator changes a score by a difference, whatever the operator of the board."""
        known = self.ledger.keys() | self.quarantine.keys()
        repeats = [entry for entry in self.stream if (entry[1], entry[2]) in known]
        if not delta or user in self.late or any(entry[1] == user for entry in repeats):
            return
        layout, rules = self.scripts.layout, self.board_rules
        self.acts += 1
        action, generation = f"act:{self.acts}", self.scripts.now() // layout.seen_seconds
        digest = digest_of("main", user, action)
        shard = shard_of(digest, layout.seen_shards)
        keys = [*REPAIR, *(KEYS.dedup_shard(generation + step, shard) for step in (1, 0, -1))]
        args = (generation, str(layout), self.scripts.cap, user, action, digest, delta)
        word, *numbers = self.scripts.run("act", keys, *args, rules.score_min, rules.score_max, -1)
        held = self.scores.get(user, 0)
        if not rules.score_min <= held + delta <= rules.score_max:
            assert (word, numbers) == (b"range", [delta, held, 0])
            return
        self.seq += 1
        self.scores[user], self.arrivals[user] = held + delta, self.seq
        self.stream.append((self.seq, user, action, delta, held + delta))
        assert (word, numbers) == (b"applied", [delta, held + delta, self.seq])

    @rule()
    def repeat_everything(self) -> None:
        """Every remembered action gets its first answer, and nothing changes (I5)."""
        before = self.scripts.snapshot()
        for (user, action), (delta, score, seq, number) in self.memory.items():
            row = self.scripts.submit((user, action, number, 1))
            again = "held_before" if (user, action) in self.held_memory else "replayed"
            assert row == [[again, delta, score, seq]]
        assert self.scripts.snapshot() == before

    @rule(count=st.integers(1, 10))
    def flush(self, count: int) -> None:
        """Count in the ledger, acknowledge and trim, as the flusher does."""
        got = self.client.xreadgroup(GROUP, "one", {KEYS.events: ">"}, count=count)
        if not got:
            return
        ids = [position for position, _ in got[0][1]]
        done, self.stream = self.stream[: len(ids)], self.stream[len(ids) :]
        for seq, user, action, delta, score in done:
            if action.startswith("correction:"):
                continue
            is_act = action.startswith("act:")
            if seq in self.held:
                if (user, action) not in self.ledger:
                    answer = (delta, score, seq, self.numbers[seq])
                    self.quarantine.setdefault((user, action), answer)
                continue
            if self.board_rules.takes_values and not is_act:
                delta = score - self.counted.get(user, 0)  # noqa: PLW2901 (as flusher.values)
            if (user, action) in self.ledger.keys() | self.quarantine.keys() or not delta:
                self.late.add(user)
                continue
            self.ledger[user, action] = delta
            self.counted[user] = self.counted.get(user, 0) + delta
            if is_act:
                continue
            number = self.numbers[seq]
            self.answers[user, action] = (delta, score, seq, number)
        first, self.flushed, self.flushed_id = done[0][0], done[-1][0], ids[-1]
        channel = COMMITS_PREFIX + "main"
        args = (self.scripts.history, self.epoch, ids[-1], first, self.flushed, channel, *ids)
        assert self.scripts.run("trim", TRIM, GROUP, *args)[0] == len(ids)

    @rule(which=st.integers(0, 100))
    def repeat_late(self, which: int) -> None:
        """An action comes again after the dedup window: it may count in Redis until repaired.

        Points that it adds could be taken away before the repair, and the sum become negative, so
        boards that add are repaired at once.
        """
        self.flush(10_000)
        known = sorted(self.answers.keys() | self.quarantine.keys())
        if not known:
            return
        user, action = known[which % len(known)]
        if self.board_rules.takes_values:
            for key in self.client.keys("*:seen:*"):
                self.client.delete(key)
            self.memory.clear()
        else:
            keys, args = self.scripts.submit_call((user, action, 1))
            for key in keys:
                if ":seen:" in key:
                    self.client.hdel(key, args[5])
            self.memory.pop((user, action), None)
        number = (self.answers | self.quarantine)[user, action][3]
        expected = self.expect(user, action, number, stated=True)
        assert self.scripts.submit((user, action, number, 1)) == [expected]
        if not self.board_rules.takes_values:
            self.flush(10_000)
            self.repair()

    @rule()
    def repair(self) -> None:
        """Set every user to the ledger plus what the stream holds (I3); twice changes nothing."""
        users = sorted({*self.scores, *self.counted})
        if not users:
            return
        args: list[object] = [self.scripts.history, self.epoch, self.flushed, self.flushed_id]
        each: list[object] = []
        for user in users:
            each += [user, self.counted.get(user, -1), 0, 0]
        for user, row in zip(
            users, self.scripts.run("repair", REPAIR, *args, 0, "", *each), strict=True
        ):
            expected = self.expected_score(user)
            assert row[1:3] == [expected - self.scores.get(user, 0), expected]
            if row[3]:
                self.seq = row[3]
                self.stream.append((self.seq, user, f"correction:{self.flushed}", 0, expected))
            if row[0].decode() == "corrected":
                self.scores[user] = expected
                self.arrivals[user] = -1  # its place among equals is not modelled
        again = self.scripts.run("repair", REPAIR, *args, 1, "", *each)
        assert {row[0] for row in again} == {b"unchanged"}
        self.late.clear()

    def expected_score(self, user: str) -> int:
        """Return the ledger's score plus what the stream holds; a value replaces all before it."""
        score = self.counted.get(user, 0)
        for seq, name, action, delta, after in self.stream:
            if name == user and not action.startswith("correction:") and seq not in self.held:
                is_value = self.board_rules.takes_values and not action.startswith("act:")
                score = after if is_value else score + delta
        return score

    @rule()
    def reseed(self) -> None:
        """Drain, then rebuild the board and its memory from the ledger under a new epoch."""
        self.flush(10_000)
        self.scripts.fence("T")
        for key in self.client.keys("*:seen:*"):
            self.client.delete(key)
        ranked = sorted(self.counted, key=lambda user: self.arrivals.get(user, 0))
        slots: dict[int, int] = {}
        page: list[object] = []
        for user in ranked:
            score = self.counted[user]
            slots[score] = slots.get(score, SLOT_COUNT) - 1
            page += [self.board_rules.pack(score, slots[score]), user]
        self.scripts.run("restore", [KEYS.meta, KEYS.shadow], "T", 1, *page)
        expiry = self.scripts.now() + 1000
        for (user, action), answer in (self.answers | self.quarantine).items():
            delta, score, seq, number = answer
            keys, args = self.scripts.submit_call((user, action, 1))
            is_held = (user, action) in self.quarantine
            record = f"{delta}:{score}:{seq}"
            record += f":{number}" if self.board_rules.takes_values or is_held else ""
            record += ":held" if is_held else ""
            seen = next(key for key in keys if ":seen:" in key)
            self.scripts.run("remember", [KEYS.meta, seen], "T", 0, expiry, args[5], record)
        self.memory = self.answers | self.quarantine
        self.held_memory = set(self.quarantine)
        self.scores = dict(self.counted)
        self.late.clear()
        self.epoch += 1
        self.flushed, self.flushed_id = self.seq, self.flushed_id
        self.scripts.run(
            "open",
            [KEYS.board, KEYS.shadow, KEYS.events, KEYS.meta, KEYS.changes],
            *("T", self.epoch, self.seq, self.flushed_id, GROUP),
            *(str(self.scripts.layout), 1, len(ranked), "open", str(self.limits)),
        )

    @rule()
    def begin_another_window(self) -> None:
        """The counters of the present window become those of an earlier one."""
        if self.client.hexists(KEYS.gained, "/ends"):
            self.client.hincrby(KEYS.gained, "/ends", -1000)
            self.gained.clear()

    @invariant()
    def the_board_is_ranked_by_its_order(self) -> None:
        if not hasattr(self, "stream"):
            return
        held = [(u, self.board_rules.unpack_score(packed)) for u, packed in self.scripts.board()]
        assert dict(held) == self.scores
        ranked = sorted(self.scores.values(), reverse=self.board_rules.order == "highest")
        assert [score for _, score in held] == ranked
        for (one, score), (other, same) in pairwise(held):
            if score == same and min(self.arrivals[one], self.arrivals[other]) > 0:
                assert self.arrivals[one] < self.arrivals[other], "equal scores rank by arrival"

    @invariant()
    def scores_are_sums_within_their_bounds(self) -> None:
        """The score is the sum of the deltas (I2), and stays in the bounds of the board."""
        if not hasattr(self, "stream"):
            return
        sums: dict[str, int] = {}
        for (user, _), delta in self.ledger.items():
            assert delta, "the ledger has no change of 0"
            sums[user] = sums.get(user, 0) + delta
        assert sums == self.counted
        for user, score in self.scores.items():
            assert self.board_rules.score_min <= score <= self.board_rules.score_max
            assert user in self.late or score == self.expected_score(user)


OPERATORS = ["add", "best", "last"]
BOUNDS = [(0, SCORE_MAX), (5, 50)]
LIMITS = [NO_LIMITS, Limits(10, 15, 31 * 86_400)]


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("order", ["highest", "lowest"])
@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("limits", LIMITS, ids=["", "limits"])
def test_the_board_and_its_ledger_equal_their_model(
    operator: Any, order: Any, bounds: tuple[int, int], limits: Limits, redis_url: str
) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    rules = Rules(operator, order, *bounds, "players", "stated")
    if rules.takes_values and limits != NO_LIMITS:
        limits = Limits(limits.per_action)
    with redis.Redis.from_url(redis_url) as client:
        machine: type[RulesMachine] = type(
            "Machine", (RulesMachine,), {"client": client, "board_rules": rules, "limits": limits}
        )
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=25,
                stateful_step_count=25,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
