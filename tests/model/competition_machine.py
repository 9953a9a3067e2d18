"""A state machine: a board with rules, seasons, limits, acts and bans, and its model.

The servers, the flusher and the code of the operators are real. A step is a call of a player or an
administrator, a repeat of an earlier one, the end of a season, a flush, the death of a flusher, an
emptied Redis, or a reseed. After each step every read of the board must agree with the model, and
after a flush PostgreSQL must.
"""

import asyncio
import copy
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime
from itertools import count, pairwise
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from scoreboard.errors import ActConflict, OperatorMistake, ScoreboardError, UnknownUser
from scoreboard.model import NO_LIMITS, Action, Board, Layout, Limits, Receipt, Rules
from scoreboard.moderation.acts import Done
from scoreboard.moderation.plans import (
    BanChange,
    Correction,
    Release,
    Request,
    Undo,
    Void,
    WindowVoid,
)
from scoreboard.seasons import season_at
from tests.model.plain_board import Act, PlainBoard, Refusal
from tests.model.real_board import REASON, RealBoard, Servers, outcome_of

USERS = ["ann", "bob", "auth0|d:@._-", "e" * 128]
ACTIONS = [f"win:{n}" for n in range(8)]
NUMBERS = [0, 1, 1, 2, 2, 5, 9, 10, 11, 50, 51, 1000, -1, -7]
STATED_SEASONS = ["", "", "", "current", "earlier"]
WHICH = st.integers(0, 1000)
Batch = list[tuple[str, str, int, bool, str]]
"""User, action, number, whether it is stated, and which season is."""
BATCHES = st.lists(
    st.tuples(
        st.sampled_from(USERS),
        st.sampled_from(ACTIONS),
        st.sampled_from(NUMBERS),
        st.booleans(),
        st.sampled_from(STATED_SEASONS),
    ),
    min_size=3,
    max_size=8,
)
YEARLY = ("cron:0 0 1 1 *", "UTC")
"""Seasons that the test ends by itself: each a second after the one before, early in the year."""

_T = TypeVar("_T")
_names = count(1)


def choose(those: Sequence[_T], which: int) -> _T:
    """Return one of those, for 0 the last."""
    return those[-1 - which % len(those)]


class CompetitionMachine(RuleBasedStateMachine):
    """A board, and its model."""

    runner: asyncio.Runner
    servers: Servers
    board_rules: Rules
    limits: Limits
    partitions: int

    def wait(self, waiting: Awaitable[_T]) -> _T:
        async def run() -> _T:
            return await waiting

        return self.runner.run(run())

    def outcome(self, waiting: Awaitable[_T]) -> _T | Refusal:
        """Return what a call returns, or the class of its error."""
        try:
            return self.wait(waiting)
        except ScoreboardError as error:
            return type(error)

    @initialize(opening=st.lists(BATCHES, min_size=3, max_size=4))
    def start(self, opening: list[Batch]) -> None:
        layout = Layout(self.partitions, 100_000, 4, self.board_rules)
        board = Board(f"board-{next(_names)}", layout, limits=self.limits)
        self.real = RealBoard(self.servers, board)
        self.wait(self.real.open())
        first, self.ends_s = "", 0
        if self.board_rules.season:
            season = season_at(self.board_rules, self.wait(self.servers.store.now_s()))
            first, self.ends_s = season.id, season.start_s
        self.model = PlainBoard(self.board_rules, self.limits, self.partitions, [first])
        self.requests: dict[str, Request] = {}
        self.moments = [(datetime(2000, 1, 1, tzinfo=UTC), [0] * self.partitions)]
        """Times, with the seq of each partition that is the first one after it."""
        for batch in opening:
            self.submit(batch)
            self.note_the_time()
        self.flush()

    # Players.

    def season_named(self, which: str) -> str:
        if not self.board_rules.season or not which:
            return ""
        return self.model.seasons[-1 if which == "current" else 0]

    @rule(batch=BATCHES)
    def submit_more(self, batch: Batch) -> None:
        """Let players act as often as administrators."""
        self.submit(batch)

    @rule(batch=BATCHES)
    def submit(self, batch: Batch) -> None:
        rules = self.board_rules
        if not rules.takes_values:
            batch = [(u, a, n or 1, is_stated, s) for u, a, n, is_stated, s in batch]
        for user, *_ in batch:
            self.model.touch(user)
        given = [(u, a, n, is_stated, self.season_named(s)) for u, a, n, is_stated, s in batch]
        expected = [
            self.model.submit(u, a, n, is_stated=is_stated, season=s)
            for u, a, n, is_stated, s in given
        ]
        actions = [
            Action(u, a, n, stated=is_stated, rules=rules, season=s)
            for u, a, n, is_stated, s in given
        ]
        self.check_receipts(expected, actions)

    def check_receipts(self, expected: list[Receipt | Refusal], actions: list[Action]) -> None:
        answers = [outcome_of(one) for one in self.wait(self.real.submit(*actions))]
        for action, answer in zip(actions, answers, strict=True):
            if isinstance(answer, Receipt) and answer.committed:
                assert answer.seq <= self.model.part_of(action.user_id).committed
        assert [
            msgspec.structs.replace(one, committed=False) if isinstance(one, Receipt) else one
            for one in answers
        ] == expected

    @rule()
    def repeat_every_action(self) -> None:
        """Every remembered action gets its first answer, and nothing changes (I5)."""
        known = list(self.model.answers.items())
        for number in range(self.partitions):
            self.turn(number)
        before = self.real.snapshot()
        actions = [
            Action(user, action, number, stated=True, rules=self.board_rules)
            for (user, action), (_, number) in known
        ]
        self.check_receipts(
            [Receipt(r.score, r.seq, replayed=True, held=r.held) for _, (r, _) in known], actions
        )
        assert self.real.snapshot() == before

    @rule(which=WHICH)
    def repeat_late(self, which: int) -> None:
        """An action comes again after the dedup window: the ledger counts it once (I1)."""
        self.flush()
        for number in range(self.partitions):
            self.turn(number)
        self.flush()
        counted = [one for one in self.model.ledger.values() if one.kind == "counted"]
        recorded = [one.entry for one in self.model.held.values()]
        if which % 2 or not recorded:
            recorded = counted
        if not recorded:
            return
        self.begin_another_window()  # so that it may count where it was held
        found = choose(recorded, which // 2)
        user, action, number = found.user, found.action, found.number
        self.wait(self.real.forget_actions())
        late = copy.deepcopy(self.model)
        late.answers.clear()
        expected = late.submit(user, action, number, is_stated=True, season="")
        repeat = Action(user, action, number, stated=True, rules=self.board_rules)
        self.check_receipts([expected], [repeat])
        self.model.gained = late.gained
        self.wait(self.real.flush())
        for place, part in enumerate(self.model.parts):  # corrections took seqs
            part.seq = part.committed = self.wait(self.real.committed(place))
        self.compare_stores()
        self.the_board_equals_its_model()
        self.reseed(is_emptied=False)

    @rule()
    @precondition(lambda self: self.model.gained)
    def begin_another_window(self) -> None:
        self.wait(self.real.begin_another_window())
        self.model.gained.clear()

    # Administrators.

    def perform(self, request: Request, planned: Act | Refusal) -> None:
        act_id = f"{next(_names):016x}"
        expected = self.model.perform(planned, act_id)
        done = self.outcome(self.real.perform(request, act_id))
        if isinstance(done, Done):
            assert isinstance(planned, Act)
            is_committed = planned.kind in {"ban", "unban"}
            assert done == Done(act_id, expected, is_committed)
        else:
            assert done is expected
        if act_id in self.model.acts:
            self.requests[act_id] = request

    @rule(which=WHICH, delta=st.sampled_from([1, 2, 5, 60, -1, -5, -7, 2**31 - 1]))
    def correct(self, which: int, delta: int) -> None:
        """Correct a score, often that of a banned user."""
        user = choose([*self.model.bans, *USERS], which)
        self.perform(Correction(user, delta), self.model.correction(user, delta))

    def flush_often(self, which: int) -> None:
        """Let PostgreSQL have everything, as it usually has when an administrator decides."""
        if which % 4 and any(map(self.model.has_backlog, USERS)):
            self.flush()

    @rule(which=WHICH)
    def void(self, which: int) -> None:
        """Void an action that was applied in any season, or one that was not."""
        self.flush_often(which)
        model = self.model
        undone = [act for act in model.acts.values() if act.voids and model.is_undone(act)]
        # Most often one that can be voided, also again after the void was undone.
        can_be = [(act.user, action) for act in undone for action in act.voids]
        can_be += [
            (one.user, one.action)
            for user in USERS
            for one in model.counted(user)
            if one.action not in model.voided(user)
        ]
        others = [key for key, one in model.ledger.items() if one.kind == "counted"]
        user, action = choose(can_be * 3 + others + [(USERS[0], "win:none")], which)
        self.perform(Void(user, action), model.void(user, action))

    @rule()
    def note_the_time(self) -> None:
        following = [part.seq + 1 for part in self.model.parts]
        self.moments.append((self.wait(self.real.next_moment()), following))

    @rule(user=st.sampled_from(USERS), since=WHICH, until=WHICH)
    def void_window(self, user: str, since: int, until: int) -> None:
        self.flush_often(since)
        number = self.model.number_of(user)
        ends = [*self.moments, (datetime(2100, 1, 1, tzinfo=UTC), [2**53] * self.partitions)]
        (start, first), (end, last) = self.moments[since % len(self.moments)], ends[-1 - until % 2]
        planned = self.model.window_void(user, first[number], last[number])
        self.perform(WindowVoid(user, start, end), planned)

    @rule(user=st.sampled_from(USERS), is_again=WHICH)
    def ban(self, user: str, is_again: int) -> None:
        """Ban a user who is not banned, or end the ban; sometimes do what is done already."""
        if (user in self.model.bans) == (is_again % 10 == 0):
            self.perform(BanChange(user, "ban"), self.model.ban(user))
        else:
            self.perform(BanChange(user, "unban"), self.model.unban(user))

    @rule(which=WHICH)
    @precondition(lambda self: self.model.acts)
    def undo(self, which: int) -> None:
        self.flush_often(which)
        acts = self.model.acts.values()
        can_be = [one for one in acts if not (one.undoes or self.model.is_undone(one))]
        act_id = choose(can_be * 3 + list(acts), which).id
        self.perform(Undo(act_id), self.model.undo(act_id))

    @rule(which=WHICH)
    @precondition(lambda self: any(map(self.model.is_recorded, self.model.held.values())))
    def release(self, which: int) -> None:
        self.flush_often(which)
        held_id, key = self.choose_held(which)
        self.perform(Release(held_id), self.model.release(key))

    @rule(which=WHICH)
    @precondition(lambda self: any(map(self.model.is_recorded, self.model.held.values())))
    def void_held(self, which: int) -> None:
        held_id, key = self.choose_held(which)
        expected = self.model.void_held(key)

        async def use() -> None:
            async with self.real.moderator() as moderator:
                await moderator.void_held(held_id, reason=REASON)

        assert self.outcome(use()) is expected

    def choose_held(self, which: int) -> tuple[int, tuple[str, str]]:
        rows = self.wait(
            self.real.query(
                "SELECT h.id, u.external_id, h.action_id FROM held_actions h"
                " JOIN users u ON u.id = h.user_id WHERE h.board = %(board)s ORDER BY h.id"
            )
        )
        undecided = [row for row in rows if self.model.held[row[1:]].act is None]
        held_id, user, action = choose(undecided * 2 + rows, which)
        return held_id, (user, action)

    @rule(which=WHICH, is_another=st.booleans())
    @precondition(lambda self: self.model.acts)
    def repeat_an_act(self, which: int, is_another: bool) -> None:
        """A repeated request completes its act, or changes nothing."""
        act_id = choose(list(self.model.acts), which)
        act, request = self.model.acts[act_id], self.requests[act_id]
        if is_another:
            request = Correction(act.user, act.delta + 1)
        elif self.model.state_of(act) == "pending":
            self.turn(self.model.number_of(act.user))
        before, rows = self.real.snapshot(), self.wait(self.audited())

        async def use() -> None:
            async with self.real.moderator() as moderator:
                assert await moderator.repeat(request, reason=REASON, act_id=act_id)

        expected = ActConflict if is_another else OperatorMistake if act.is_refused else None
        assert self.outcome(use()) is expected
        assert (self.real.snapshot(), self.wait(self.audited())) == (before, rows)

    async def audited(self) -> list[tuple[Any, ...]]:
        return await self.real.query("SELECT count(*) FROM audit_log WHERE board = %(board)s")

    # Seasons.

    @rule()
    @precondition(lambda self: self.board_rules.season)
    def end_season(self) -> None:
        """The season is over; each partition is turned by the next call, or by ``turn``."""
        for number in range(self.partitions):
            self.turn(number)
        self.ends_s += 1
        self.wait(self.real.end_season(self.ends_s))
        following = datetime.fromtimestamp(self.ends_s, UTC)
        self.model.seasons.append(f"{following:%Y-%m-%dT%H%M%S}Z")
        for part in self.model.parts:
            part.has_ended = True

    @rule(number=st.integers(0, 1))
    @precondition(lambda self: any(part.has_ended for part in self.model.parts))
    def turn(self, number: int) -> None:
        number %= self.partitions
        self.model.turn(number)
        assert self.wait(self.real.turn(number)) == self.model.parts[number].season

    @rule()
    @precondition(lambda self: len(self.model.seasons) > len(self.model.standings) + 1)
    def freeze(self) -> None:
        self.model.freeze()
        self.wait(self.real.freeze())
        self.compare_standings()

    # Stores.

    @rule()
    def flush(self) -> None:
        self.wait(self.real.flush())
        for number, part in enumerate(self.model.parts):
            assert self.wait(self.real.committed(number)) == part.seq
            part.committed = part.seq
        self.compare_stores()

    @rule(dies_after=st.integers(0, 2))
    @precondition(lambda self: any(map(self.model.has_backlog, USERS)))
    def kill_flusher(self, dies_after: int) -> None:
        """The flusher dies after a COMMIT, before it acknowledges the batch."""
        self.wait(self.real.flush(dies_after=dies_after))
        for number, part in enumerate(self.model.parts):
            committed = self.wait(self.real.committed(number))
            assert part.committed <= committed <= part.seq
            part.committed = committed
        self.compare_stores()

    @rule(is_emptied=st.booleans())
    def reseed(self, is_emptied: bool) -> None:
        """Rebuild the board; a partition that is not turned yet opens in the season of the rest."""
        self.flush()
        self.wait(self.real.reseed(is_emptied=is_emptied))
        self.model.reseed()
        if is_emptied:
            self.model.gained.clear()

    @rule()
    @precondition(lambda self: self.model.acts)
    def verify(self) -> None:
        verdict = self.wait(self.real.verify())
        # What is not committed yet is no difference.
        assert [one for one in verdict.findings if one.check != "backlog"] == []
        assert (verdict.drifted, verdict.known) == ((), ())

    # Checks.

    @invariant()
    def the_board_equals_its_model(self) -> None:
        """Every read shows the same scores in the same order; banned users have no place (I3)."""
        if hasattr(self, "model"):
            self.wait(self.check_reads())

    async def check_reads(self) -> None:
        store, name, lowest = self.servers.store, self.real.name, self.board_rules.order == "lowest"
        window = await store.leaderboard(name, limit=100)
        rows = window.rows
        assert [row.rank for row in rows] == list(range(1, len(rows) + 1))
        for one, other in pairwise(rows):
            assert one.score <= other.score if lowest else one.score >= other.score
        for number in range(self.partitions):
            own = [r for r in rows if self.model.number_of(r.user_id) == number]
            assert [(r.user_id, r.score) for r in own] == self.model.in_order(number)
            banned = await self.real.banned(number)
            assert banned == self.model.banned(number)
        assert window.total == len(rows)
        assert window.positions == tuple(
            (epoch, part.seq)
            for (epoch, _), part in zip(window.positions, self.model.parts, strict=True)
        )
        assert (await store.standings(name, USERS)).rows == rows
        for place, row in enumerate(rows):
            standing = await store.standing(name, row.user_id, around=1)
            first = max(0, min(place - 1, len(rows) - 3))
            assert (standing.rank, standing.score) == (row.rank, row.score)
            assert standing.neighbours == rows[first : first + 3]
        for user in set(USERS) - {row.user_id for row in rows}:
            with pytest.raises(UnknownUser):
                await store.standing(name, user)

    def compare_stores(self) -> None:
        self.wait(self.check_stores())

    async def check_stores(self) -> None:
        """PostgreSQL has what the model has committed, and each score is a sum (I1, I2)."""
        model, query = self.model, self.real.query
        of_user = "JOIN users u ON u.id = t.user_id WHERE t.board = %(board)s"
        ledger = await query(
            f"SELECT u.external_id, action_id, delta, seq, coalesce(season, '')"
            f" FROM score_events t {of_user}"
        )
        committed = {key: one for key, one in model.ledger.items() if model.is_committed(one)}
        assert sorted(ledger) == sorted(
            (user, action, one.delta, one.seq, one.season)
            for (user, action), one in committed.items()
        )
        sums: dict[tuple[str, str], int] = {}
        for user, _, delta, _, season in ledger:
            sums[season, user] = sums.get((season, user), 0) + delta
        scores = await query(
            "SELECT split_part(t.board, '@', 2), u.external_id, score FROM scores t"
            " JOIN users u ON u.id = t.user_id WHERE split_part(t.board, '@', 1) = %(board)s"
        )
        assert {(season, user): score for season, user, score in scores} == sums
        if all(part.committed == part.seq for part in model.parts):
            assert sums == {
                (s, u): score for s, of in model.scores.items() for u, score in of.items()
            }
        held = await query(
            f"SELECT u.external_id, action_id, delta, score FROM held_actions t {of_user}"
        )
        assert sorted(held) == sorted(
            (user, action, one.entry.delta, one.entry.score)
            for (user, action), one in model.held.items()
            if model.is_recorded(one)
        )
        bans = await query(f"SELECT u.external_id, t.act_id FROM bans t {of_user}")
        assert dict(bans) == model.bans
        dead = await query("SELECT 1 FROM dead_events WHERE board = %(board)s")
        assert dead == []

    def compare_standings(self) -> None:
        rows = self.wait(
            self.real.query(
                "SELECT t.season, u.external_id, t.score FROM season_standings t JOIN users u"
                " ON u.id = t.user_id WHERE t.board = %(board)s ORDER BY t.season, t.rank"
            )
        )
        frozen = self.wait(
            self.real.query(
                "SELECT season FROM seasons WHERE board = %(board)s AND frozen_at IS NOT NULL"
            )
        )
        assert {season for (season,) in frozen} == self.model.standings.keys()
        for season, expected in self.model.standings.items():
            found = [(user, score) for name, user, score in rows if name == season]
            assert [score for _, score in found] == [score for _, score in expected]
            for number in range(self.partitions):
                of = [[row for row in one if self.model.number_of(row[0]) == number]
                      for one in (found, expected)]  # fmt: skip
                assert of[0] == of[1]

    def teardown(self) -> None:
        if not hasattr(self, "model"):
            return
        self.flush()
        self.verify()
        if self.board_rules.season:
            self.freeze()


KINDS = {
    "points": (Rules(), NO_LIMITS, 1),
    "points, limits, seasons": (
        Rules(lowering="players", season=YEARLY[0], time_zone=YEARLY[1]),
        Limits(50, 60, 31 * 86_400),
        1,
    ),
    "points, bounds, limits, seasons, two partitions": (
        Rules("add", "lowest", 5, 100, "players", "stated", *YEARLY),
        Limits(10, 20, 31 * 86_400),
        2,
    ),
    "best, limits, seasons": (
        Rules("best", "highest", points="stated", season=YEARLY[0], time_zone=YEARLY[1]),
        Limits(49),
        1,
    ),
    "best of the lowest, seasons, two partitions": (
        Rules("best", "lowest", points="stated", season=YEARLY[0], time_zone=YEARLY[1]),
        NO_LIMITS,
        2,
    ),
    "last, limits": (Rules("last", "lowest", 0, 60, points="stated"), Limits(40), 1),
}


def machine_of(kind: str, servers: tuple[asyncio.Runner, Servers]) -> type[CompetitionMachine]:
    runner, made = servers
    rules, limits, partitions = KINDS[kind]
    members: dict[str, Any] = {
        "runner": runner,
        "servers": made,
        "board_rules": rules,
        "limits": limits,
        "partitions": partitions,
    }
    return type("Machine", (CompetitionMachine,), members)
