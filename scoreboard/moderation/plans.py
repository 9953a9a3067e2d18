"""What an act would do: the change of a score and the actions that it voids. Changes nothing."""

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from msgspec import Struct

from scoreboard.errors import NotFound, OperatorMistake, WaitTimeout
from scoreboard.ledger.acts import (
    Act,
    ActFilter,
    ActKind,
    Counted,
    select_act,
    select_acts,
    select_bans_of,
    select_counted,
)
from scoreboard.ledger.checks import read_scores
from scoreboard.ledger.held import HeldAction, HeldFilter, select_held, select_held_action
from scoreboard.ledger.pool import Connection
from scoreboard.ledger.positions import select_position
from scoreboard.model import SCORE_MAX, Board, Partition, partition_of, scores_name
from scoreboard.store.store import Store

WINDOW_MAX: Final = 10_000
"""Maximum number of counted actions of a window: they are one transaction of PostgreSQL."""

COMMIT_S: Final = 5.0
"""Longest wait for the flusher to commit what Redis has applied."""

POLL_S: Final = 0.05

_OPPOSITES: Final[dict[ActKind, ActKind]] = {"ban": "unban", "unban": "ban"}


class Plan(Struct, frozen=True, kw_only=True):
    """An act that is not recorded yet."""

    kind: ActKind
    user_id: str
    delta: int = 0
    detail: dict[str, Any] = {}
    undoes: str | None = None
    actions: tuple[str, ...] = ()
    held_id: int | None = None
    """The held action that it releases."""
    moved_from: int | None = None
    """The score from which ``delta`` was computed, where it depends on it."""


class Correction(Struct, frozen=True):
    """A request to change a score by ``delta``."""

    user_id: str
    delta: int

    async def plan(self, store: Store, connection: Connection, board: Board) -> Plan:
        """Return the plan."""
        del connection
        season = await season_of(store, board, self.user_id)
        return Plan(
            kind="correct", user_id=self.user_id, delta=self.delta, detail=_in_season(season)
        )

    def is_of(self, act: Act) -> bool:
        """Return whether an act is what is requested here."""
        return (act.kind, act.user_id, act.delta) == ("correct", self.user_id, self.delta)


class Void(Struct, frozen=True):
    """A request to take back what one action counted."""

    user_id: str
    action_id: str

    async def plan(self, store: Store, connection: Connection, board: Board) -> Plan:
        """Return the plan; wait until an action that Redis has applied is in the ledger.

        Raises NotFound, OperatorMistake (voided already, an act, or held), WaitTimeout.
        """
        season = await season_of(store, board, self.user_id)
        found = await self._counted(connection, board, season)
        if not found:
            await wait_for_commits(store, connection, board, self.user_id)
            found = await self._counted(connection, board, season)
        if not found:
            await require_not_held(connection, board, self.user_id, self.action_id)
            raise NotFound(
                f"Board {board.name} has counted no action {self.action_id} of {self.user_id}"
                f"{_named(season)}"
            )
        [action] = found
        if action.is_act:
            act_id = self.action_id.partition(":")[2]
            hint = f"scoreboard act undo {act_id}"
            raise OperatorMistake(f"{self.action_id} is an act; undo the act", hint=hint)
        if action.voided_by is not None:
            raise OperatorMistake(
                f"Action {self.action_id} was voided by act {action.voided_by} before"
            )
        detail = {"action": self.action_id, **_in_season(season)}
        return _void("void", self.user_id, found, detail)

    def is_of(self, act: Act) -> bool:
        """Return whether an act is what is requested here."""
        found = (act.kind, act.user_id, act.detail.get("action"))
        return found == ("void", self.user_id, self.action_id)

    async def _counted(self, connection: Connection, board: Board, season: str) -> list[Counted]:
        return await select_counted(
            connection,
            board.name,
            self.user_id,
            action_id=self.action_id,
            season=season,
            limit=1,
        )


class WindowVoid(Struct, frozen=True):
    """A request to take back what all actions from ``since`` until before ``until`` counted."""

    user_id: str
    since: datetime
    until: datetime

    async def plan(self, store: Store, connection: Connection, board: Board) -> Plan:
        """Return the plan; wait until the actions that Redis has applied are in the ledger.

        Acts and actions that are voided already are left out.

        Raises NotFound (no action is left), OperatorMistake (too many), WaitTimeout.
        """
        season = await season_of(store, board, self.user_id)
        await wait_for_commits(store, connection, board, self.user_id)
        found = await select_counted(
            connection,
            board.name,
            self.user_id,
            since=self.since,
            until=self.until,
            season=season,
            limit=WINDOW_MAX + 1,
        )
        if len(found) > WINDOW_MAX:
            raise OperatorMistake(
                f"The window has more than {WINDOW_MAX} actions; void shorter windows"
            )
        chosen = [one for one in found if not one.is_act and one.voided_by is None]
        if not chosen:
            raise NotFound(f"No action of {self.user_id} in this window counts{_named(season)}")
        return _void("void window", self.user_id, chosen, {**self._window, **_in_season(season)})

    def is_of(self, act: Act) -> bool:
        """Return whether an act is what is requested here."""
        return (act.kind, act.user_id) == (
            "void window",
            self.user_id,
        ) and self._window.items() <= act.detail.items()

    @property
    def _window(self) -> dict[str, str]:
        return {"from": self.since.isoformat(), "to": self.until.isoformat()}


class BanChange(Struct, frozen=True):
    """A request to ban a user from a board, or to end the ban."""

    user_id: str
    kind: ActKind

    async def plan(self, store: Store, connection: Connection, board: Board) -> Plan:
        """Return the plan.

        Raises OperatorMistake if the user is banned already, or is not.
        """
        del store
        await require_ban(connection, board, self.user_id, is_banned=self.kind == "unban")
        return Plan(kind=self.kind, user_id=self.user_id)

    def is_of(self, act: Act) -> bool:
        """Return whether an act is what is requested here."""
        return (act.kind, act.user_id, act.undoes) == (self.kind, self.user_id, None)


class Release(Struct, frozen=True):
    """A request to let a held action count, also one of an earlier season if it says so."""

    held_id: int
    in_current_season: bool = False

    async def plan(self, store: Store, connection: Connection, board: Board) -> Plan:
        """Return the plan.

        Points are added as they are. A value sets the score that the user has now, so the plan
        waits until PostgreSQL has it; if it changes before the act is applied, the act is refused.

        On a board with seasons it counts in the current one. That is the one in which it was held,
        unless the request says otherwise: the standings of a season do not change by a release.

        Raises NotFound, OperatorMistake (not held any more, of a season that is over, or it would
        change nothing), WaitTimeout.
        """
        held = await select_held_action(connection, board.name, self.held_id)
        require_held(held)
        season = await season_of(store, board, held.user_id)
        detail = {"action": held.action_id, "held": held.id, **_in_season(season)}
        if season and held.season != season:
            if not self.in_current_season:
                raise OperatorMistake(
                    f"Held action {held.id} is of season {held.season}, which is over. Void it, or "
                    f"let it count in {season}",
                    hint=f"scoreboard held release {held.id} --in-current-season",
                )
            detail["heldIn"] = held.season
        rules = board.layout.rules
        if not rules.takes_values:
            return Plan(
                kind="release",
                user_id=held.user_id,
                delta=held.delta,
                detail=detail,
                held_id=held.id,
            )
        await wait_for_commits(store, connection, board, held.user_id)
        scores = await read_scores(connection, scores_name(board.name, season), [held.user_id])
        found = scores.get(held.user_id)
        score, value = found.score if found else 0, held.score + held.delta
        is_better = value < score if rules.order == "lowest" and found else value > score
        if value == score or (rules.operator == "best" and not is_better):
            raise OperatorMistake(
                f"The score of {held.user_id} is {score}, so the value {value} would change "
                "nothing; void the held action",
                hint=f"scoreboard held void {held.id}",
            )
        return Plan(
            kind="release",
            user_id=held.user_id,
            delta=value - score,
            detail={**detail, "from": score},
            held_id=held.id,
            moved_from=score,
        )

    def is_of(self, act: Act) -> bool:
        """Return whether an act is what is requested here."""
        return (act.kind, act.detail.get("held")) == ("release", self.held_id)


class Undo(Struct, frozen=True):
    """A request for the opposite of an act."""

    act_id: str

    async def plan(self, store: Store, connection: Connection, board: Board) -> Plan:
        """Return the plan.

        Raises NotFound, OperatorMistake (not applied, undone already, or an undo itself).
        """
        act = await select_act(connection, self.act_id)
        _require_undoable(act)
        season = ""
        if act.kind in _OPPOSITES:
            kind = _OPPOSITES[act.kind]
            held = await require_ban(connection, board, act.user_id, is_banned=kind == "unban")
            if held not in {None, act.id}:
                raise OperatorMistake(f"User {act.user_id} is now banned by act {held}: undo that")
        else:
            kind = "undo"
            season = await season_of(store, board, act.user_id)
            if act.detail.get("season", "") != season:
                raise OperatorMistake(
                    f"Act {act.id} is of season {act.detail.get('season')}, which is over"
                )
        return Plan(
            kind=kind,
            user_id=act.user_id,
            delta=-act.delta,
            detail={"undoes": act.id, "kind": act.kind, **_in_season(season)},
            undoes=act.id,
        )

    def is_of(self, act: Act) -> bool:
        """Return whether an act is what is requested here."""
        return act.undoes == self.act_id


Request = Correction | Void | WindowVoid | BanChange | Release | Undo


async def wait_for_commits(
    store: Store, connection: Connection, board: Board, user_id: str
) -> None:
    """Wait until PostgreSQL has what Redis has applied to a user's partition so far.

    Raises WaitTimeout, RedisUnavailable, DatabaseUnavailable.
    """
    partition = home_of(board, user_id)
    state = await store.state(partition)
    deadline = time.monotonic() + COMMIT_S
    while True:
        position = await select_position(connection, partition)
        if (position.epoch, position.seq) >= (state.epoch, state.seq):
            return
        if time.monotonic() > deadline:
            raise WaitTimeout(
                f"{state.seq - position.seq} actions of {partition} wait for PostgreSQL: "
                "is the flusher running?"
            )
        await asyncio.sleep(POLL_S)


async def season_of(store: Store, board: Board, user_id: str) -> str:
    """Return the id of the current season of a user's partition; empty if the board has none.

    An act counts in the season in which it is planned, or not at all.

    Raises what Store.turn raises.
    """
    season = await store.turn(home_of(board, user_id), board.layout.rules)
    return season.id if season else ""


def _named(season: str) -> str:
    """Return the end of a message that an action was not found."""
    return f" in season {season}; earlier seasons are final" if season else ""


def _in_season(season: str) -> dict[str, Any]:
    return {"season": season} if season else {}


def home_of(board: Board, user_id: str) -> Partition:
    """Return the partition of a user."""
    return Partition(board.name, partition_of(user_id, board.layout.partitions))


async def require_ban(
    connection: Connection, board: Board, user_id: str, *, is_banned: bool
) -> str | None:
    """Return the act that banned a user.

    Raises OperatorMistake unless the user is banned as ``is_banned`` says.
    """
    held = (await select_bans_of(connection, board.name, [user_id])).get(user_id)
    if held is not None and not is_banned:
        raise OperatorMistake(f"User {user_id} is banned from board {board.name}, by act {held}")
    if held is None and is_banned:
        raise OperatorMistake(f"User {user_id} is not banned from board {board.name}")
    return held


def require_held(held: HeldAction) -> None:
    """Raise OperatorMistake if an action is released or voided."""
    if held.state == "voided":
        raise OperatorMistake(f"Held action {held.id} was voided by {held.voided_by} before")
    if held.state != "held":
        raise OperatorMistake(
            f"Held action {held.id} was released by act {held.act_id} before",
            hint=f"scoreboard act undo {held.act_id} takes it back",
        )


async def require_not_held(
    connection: Connection, board: Board, user_id: str, action_id: str
) -> None:
    """Raise OperatorMistake if an action was held, whatever was decided: say what can be done."""
    chosen = HeldFilter(board=board.name, user_id=user_id, action_id=action_id)
    for held in await select_held(connection, chosen, limit=1):
        require_held(held)
        raise OperatorMistake(
            f"Action {action_id} of {user_id} is held and counts nothing; void the held action",
            hint=f"scoreboard held void {held.id}",
        )


async def require_no_pending(connection: Connection, board: Board, user_id: str) -> None:
    """Raise OperatorMistake if an act on the user was recorded and not applied yet."""
    chosen = ActFilter(board=board.name, user_id=user_id, state="pending")
    for act in await select_acts(connection, chosen, limit=1):
        raise OperatorMistake(
            f"Act {act.id} on {user_id} is recorded and not in the ledger yet; complete it first",
            hint=f"scoreboard act resume {act.id}",
        )


def _require_undoable(act: Act) -> None:
    if act.undone_by is not None:
        raise OperatorMistake(f"Act {act.id} was undone by act {act.undone_by} before")
    if act.state == "refused":
        raise OperatorMistake(f"Act {act.id} was refused and changed nothing")
    if act.state == "pending":
        raise OperatorMistake(
            f"Act {act.id} is not in the ledger yet; complete it first",
            hint=f"scoreboard act resume {act.id}",
        )
    if act.undoes is not None:
        raise OperatorMistake(f"Act {act.id} undid act {act.undoes}: repeat that act instead")


def _void(kind: ActKind, user_id: str, chosen: Sequence[Counted], detail: dict[str, Any]) -> Plan:
    """Return the plan that takes back what actions counted.

    Raises OperatorMistake if their sum is zero or exceeds a score.
    """
    total = sum(one.delta for one in chosen)
    if not total or abs(total) > SCORE_MAX:
        raise OperatorMistake(f"The points of these actions sum up to {total}: nothing to change")
    return Plan(
        kind=kind,
        user_id=user_id,
        delta=-total,
        detail={**detail, "actions": len(chosen)},
        actions=tuple(one.action_id for one in chosen),
    )
