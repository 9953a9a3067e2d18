"""A board with rules, limits, seasons, acts and bans, in plain Python: for test_competitions.

Each method does to the model what a call does to the board, and returns what the call must answer,
or the class of the error that it must raise. A refused call changes nothing, except that it may
turn a partition whose season has ended.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from scoreboard.errors import (
    ActionConflict,
    Banned,
    NotFound,
    OperatorMistake,
    ScoreboardError,
    ScoreOutOfRange,
    SeasonClosed,
    WaitTimeout,
)
from scoreboard.model import SCORE_MAX, Limits, Receipt, Rules, partition_of

Refusal = type[ScoreboardError]
Named = tuple[str, str]
"""User and action."""


@dataclass(frozen=True)
class Entry:
    """A counted or held action, or an act."""

    user: str
    action: str
    delta: int
    score: int
    seq: int
    season: str
    number: int = 0
    """What the caller stated."""
    kind: Literal["counted", "act", "held"] = "counted"


@dataclass
class Part:
    """A partition."""

    season: str
    seq: int = 0
    committed: int = 0
    """The seq up to which PostgreSQL has everything."""
    has_ended: bool = False
    """Whether the next call turns it."""
    turns: list[tuple[int, str]] = field(default_factory=list)
    """The seqs at which seasons began."""

    @property
    def committed_season(self) -> str:
        """Return the season of which PostgreSQL has something."""
        return [season for seq, season in self.turns if seq <= self.committed][-1]


@dataclass
class Act:
    """An act of an administrator."""

    id: str
    kind: str
    user: str
    delta: int = 0
    season: str = ""
    undoes: str | None = None
    voids: tuple[str, ...] = ()
    held: Named | None = None
    is_refused: bool = False


@dataclass
class Held:
    """A held action."""

    entry: Entry
    act: str | None = None
    is_voided: bool = False


@dataclass
class PlainBoard:
    """The model. ``seasons`` has the ids of all seasons, in order; one of "" without seasons."""

    rules: Rules
    limits: Limits
    partitions: int
    seasons: list[str]
    parts: list[Part] = field(init=False)
    scores: dict[str, dict[str, int]] = field(default_factory=dict)
    """By season and user, of what Redis has applied."""
    arrivals: dict[tuple[str, str], int] = field(default_factory=dict)
    """The seq at which a user of a season reached the score."""
    ledger: dict[Named, Entry] = field(default_factory=dict)
    """Also what PostgreSQL does not have yet."""
    held: dict[Named, Held] = field(default_factory=dict)
    answers: dict[Named, tuple[Receipt, int]] = field(default_factory=dict)
    """What Redis remembers: the answer to an action, and the number that the caller stated."""
    gained: dict[str, int] = field(default_factory=dict)
    acts: dict[str, Act] = field(default_factory=dict)
    bans: dict[str, str] = field(default_factory=dict)
    """The act that banned each user."""
    standings: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    """Final ones, by season."""

    def __post_init__(self) -> None:
        first = self.seasons[0]
        self.parts = [Part(first, turns=[(0, first)]) for _ in range(self.partitions)]

    # What is so now.

    def number_of(self, user: str) -> int:
        return partition_of(user, self.partitions)

    def part_of(self, user: str) -> Part:
        return self.parts[self.number_of(user)]

    def score_of(self, user: str) -> int | None:
        return self.scores.get(self.part_of(user).season, {}).get(user)

    def is_committed(self, entry: Entry) -> bool:
        return entry.seq <= self.part_of(entry.user).committed

    def is_recorded(self, held: Held) -> bool:
        return self.is_committed(held.entry)

    def has_backlog(self, user: str) -> bool:
        part = self.part_of(user)
        return part.committed < part.seq

    def in_order(self, number: int) -> list[tuple[str, int]]:
        """Return users and scores that a partition shows, best first, then by arrival."""
        season = self.parts[number].season
        return self.ranked(season, [u for u in self.users(season) if self.number_of(u) == number])

    def banned(self, number: int) -> dict[str, int]:
        """Return the banned users of a partition, with their scores, -1 for none."""
        scores = self.scores.get(self.parts[number].season, {})
        return {user: scores.get(user, -1) for user in self.bans if self.number_of(user) == number}

    def users(self, season: str) -> list[str]:
        return [user for user in self.scores.get(season, {}) if user not in self.bans]

    def ranked(self, season: str, users: Iterable[str]) -> list[tuple[str, int]]:
        scores = self.scores.get(season, {})
        sign = 1 if self.rules.order == "lowest" else -1
        order = sorted(users, key=lambda user: (sign * scores[user], self.arrivals[season, user]))
        return [(user, scores[user]) for user in order]

    def state_of(self, act: Act) -> str:
        if act.is_refused:
            return "refused"
        if act.kind in {"ban", "unban"}:
            return "applied"
        is_applied = self.is_committed(self.ledger[act.user, f"act:{act.id}"])
        return "applied" if is_applied else "pending"

    def is_undone(self, act: Act) -> bool:
        return any(one.undoes == act.id and not one.is_refused for one in self.acts.values())

    def state_of_held(self, held: Held) -> str:
        if held.is_voided:
            return "voided"
        act = self.acts[held.act] if held.act else None
        if act is None or act.is_refused or self.is_undone(act):
            return "held"
        return "released" if self.state_of(act) == "applied" else "pending"

    def voided(self, user: str) -> set[str]:
        return {
            action
            for act in self.acts.values()
            if act.user == user and not act.is_refused and not self.is_undone(act)
            for action in act.voids
        }

    def counted(self, user: str) -> Iterator[Entry]:
        """Return what PostgreSQL has of a user in the current season, without acts."""
        season = self.part_of(user).season
        for entry in self.ledger.values():
            is_own = entry.user == user and entry.season == season and entry.kind == "counted"
            if is_own and self.is_committed(entry):
                yield entry

    # Seasons and players.

    def touch(self, user: str) -> None:
        """Turn the partition of a user if its season has ended."""
        self.turn(self.number_of(user))

    def turn(self, number: int) -> None:
        part = self.parts[number]
        if not part.has_ended:
            return
        part.has_ended = False
        part.season = self.seasons[self.seasons.index(part.season) + 1]
        part.seq += 1
        part.turns.append((part.seq, part.season))

    def submit(
        self, user: str, action: str, number: int, *, is_stated: bool, season: str
    ) -> Receipt | Refusal:
        """Apply an action; its partition was turned."""
        part, rules, held = self.part_of(user), self.rules, self.score_of(user)
        if (user, action) in self.answers:
            first, known = self.answers[user, action]
            if is_stated and known != number:
                return ActionConflict
            return Receipt(first.score, first.seq, replayed=True, held=first.held)
        if season and season != part.season:
            return SeasonClosed
        if user in self.bans:
            return Banned
        goal = number if rules.takes_values else (held or 0) + number
        is_first_zero = held is None and goal == 0 and rules.order == "lowest"
        if not rules.score_min <= goal <= rules.score_max or is_first_zero:
            return ScoreOutOfRange
        if rules.operator == "best" and held is not None:
            goal = max(held, goal) if rules.order == "highest" else min(held, goal)
        delta = goal - (held or 0)
        if self._exceeds(user, delta):
            receipt = Receipt(held or 0, part.seq + 1, replayed=False, held=True)
            entry = Entry(user, action, delta, held or 0, part.seq + 1, part.season, number, "held")
            # One that PostgreSQL has already is a late duplicate.
            if (user, action) not in self.ledger:
                self.held.setdefault((user, action), Held(entry))
            part.seq += 1
        else:
            if delta:
                self._apply(Entry(user, action, delta, goal, part.seq + 1, part.season, number))
            receipt = Receipt(goal, part.seq, replayed=False)
        self.answers[user, action] = (receipt, number)
        return receipt

    def _exceeds(self, user: str, delta: int) -> bool:
        """Return whether a change is held, and count it for its window if it is not."""
        gain = delta if self.rules.order == "highest" else -delta
        if gain <= 0:
            return False
        if self.limits.per_action and gain > self.limits.per_action:
            return True
        if self.limits.per_window and not self.rules.takes_values:
            if self.gained.get(user, 0) + gain > self.limits.per_window:
                return True
            self.gained[user] = self.gained.get(user, 0) + gain
        return False

    def _apply(self, entry: Entry) -> None:
        self.part_of(entry.user).seq = entry.seq
        self.ledger[entry.user, entry.action] = entry
        self.scores.setdefault(entry.season, {})[entry.user] = entry.score
        self.arrivals[entry.season, entry.user] = entry.seq

    # Administrators: each returns the act that is to be recorded, or why there is none.

    def correction(self, user: str, delta: int) -> Act | Refusal:
        self.touch(user)
        return Act("", "correct", user, delta, self.part_of(user).season)

    def void(self, user: str, action: str) -> Act | Refusal:
        self.touch(user)
        found = {entry.action: entry for entry in self.counted(user)}.get(action)
        if found is None:
            return WaitTimeout if self.has_backlog(user) else NotFound
        if action in self.voided(user):
            return OperatorMistake
        return Act("", "void", user, -found.delta, found.season, voids=(action,))

    def window_void(self, user: str, since: int, until: int) -> Act | Refusal:
        """Void what was counted from seq ``since`` until before ``until``."""
        self.touch(user)
        if self.has_backlog(user):
            return WaitTimeout
        chosen = [
            entry
            for entry in self.counted(user)
            if since <= entry.seq < until and entry.action not in self.voided(user)
        ]
        if not chosen:
            return NotFound
        total = sum(entry.delta for entry in chosen)
        if not total:
            return OperatorMistake
        names = tuple(sorted(entry.action for entry in chosen))
        return Act("", "void window", user, -total, chosen[0].season, voids=names)

    def ban(self, user: str) -> Act | Refusal:
        return OperatorMistake if user in self.bans else Act("", "ban", user)

    def unban(self, user: str) -> Act | Refusal:
        return Act("", "unban", user) if user in self.bans else OperatorMistake

    def undo(self, act_id: str) -> Act | Refusal:
        act = self.acts[act_id]
        is_final = self.is_undone(act) or act.undoes is not None
        if is_final or self.state_of(act) != "applied":
            return OperatorMistake
        if act.kind == "ban":
            is_own = self.bans.get(act.user) == act_id
            return Act("", "unban", act.user, undoes=act_id) if is_own else OperatorMistake
        if act.kind == "unban":
            is_banned = act.user in self.bans
            return OperatorMistake if is_banned else Act("", "ban", act.user, undoes=act_id)
        self.touch(act.user)
        if act.season != self.part_of(act.user).season:
            return OperatorMistake
        return Act("", "undo", act.user, -act.delta, act.season, undoes=act_id)

    def release(self, key: Named) -> Act | Refusal:
        held = self.held[key]
        if self.state_of_held(held) != "held":
            return OperatorMistake
        user, rules, entry = held.entry.user, self.rules, held.entry
        self.touch(user)
        if not rules.takes_values:
            return Act("", "release", user, entry.delta, self.part_of(user).season, held=key)
        if self.has_backlog(user):
            return WaitTimeout
        found, value = self.score_of(user), entry.score + entry.delta
        score = found or 0
        is_better = value > score
        if rules.order == "lowest" and found is not None:
            is_better = value < score
        if value == score or (rules.operator == "best" and not is_better):
            return OperatorMistake
        return Act("", "release", user, value - score, self.part_of(user).season, held=key)

    def perform(self, planned: Act | Refusal, act_id: str) -> int | Refusal | None:
        """Record and apply an act: return the score after it, None for a ban."""
        if not isinstance(planned, Act):
            return planned
        act, user, part = planned, planned.user, self.part_of(planned.user)
        if any(one.user == user and self.state_of(one) == "pending" for one in self.acts.values()):
            return OperatorMistake
        act.id = act_id
        self.acts[act_id] = act
        if act.held:
            self.held[act.held].act = act_id
        if act.kind in {"ban", "unban"}:
            if self.score_of(user) is not None:  # the board changes, so viewers need a position
                part.seq += 1
            if act.kind == "ban":
                self.bans[user] = act_id
            else:
                del self.bans[user]
            return None
        goal = (self.score_of(user) or 0) + act.delta
        if not self.rules.act_min <= goal <= self.rules.score_max or abs(act.delta) > SCORE_MAX:
            act.is_refused = True
            return ScoreOutOfRange
        season = part.season
        self._apply(Entry(user, f"act:{act_id}", act.delta, goal, part.seq + 1, season, kind="act"))
        return goal

    def void_held(self, key: Named) -> Refusal | None:
        held = self.held[key]
        if self.state_of_held(held) != "held":
            return OperatorMistake
        held.is_voided = True
        return None

    # The stores.

    def reseed(self) -> None:
        """Open every partition in the last season, with the answers that PostgreSQL has.

        Everything is committed. Answers to actions that changed nothing are not restored.
        """
        newest = max((part.season for part in self.parts), key=self.seasons.index)
        for part in self.parts:
            part.has_ended = part.has_ended and part.season == newest
            part.season = newest
            part.turns.append((part.seq, newest))
        entries = [one for one in self.ledger.values() if one.kind == "counted"]
        entries += [one.entry for one in self.held.values()]
        self.answers = {
            (one.user, one.action): (
                Receipt(one.score, one.seq, replayed=False, held=one.kind == "held"),
                one.number,
            )
            for one in entries
        }

    def freeze(self) -> None:
        """Freeze the standings of the seasons that every partition has left in PostgreSQL."""
        left = min(self.seasons.index(part.committed_season) for part in self.parts)
        for season in self.seasons[:left]:
            if season not in self.standings:
                self.standings[season] = self.ranked(season, self.users(season))
