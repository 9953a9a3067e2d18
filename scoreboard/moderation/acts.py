"""Performs acts: records them in PostgreSQL, then applies them to Redis.

Invariants: an act and its row in the audit log are one transaction, before anything changes; the
script decides whether the new score is within the board's bounds; each step can be repeated, so an
act that was interrupted is completed by ``resume``. One operator works on a partition at a time.
"""

import asyncio
import secrets
import time

from msgspec import Struct

from scoreboard.errors import (
    ActConflict,
    NotFound,
    OperatorMistake,
    ScoreOutOfRange,
    ScriptFailed,
)
from scoreboard.ledger.acts import (
    Act,
    NewAct,
    action_id_of,
    delete_ban,
    insert_act,
    insert_ban,
    lock_bans,
    refuse_act,
    select_act,
)
from scoreboard.ledger.audit import audited
from scoreboard.ledger.held import release_held, select_held_action, void_held
from scoreboard.ledger.pool import Connection, translate_errors
from scoreboard.ledger.positions import lock_partitions, lock_position_shared, no_position
from scoreboard.ledger.retention import require_ledger
from scoreboard.model import Board
from scoreboard.moderation.plans import (
    COMMIT_S,
    POLL_S,
    BanChange,
    Plan,
    Request,
    home_of,
    require_held,
    require_no_pending,
)
from scoreboard.recovery.corrections import correct_users
from scoreboard.store.store import Store


class Done(Struct, frozen=True):
    """An act that was applied. ``score`` is the one after it, None for a ban.

    ``is_committed``: PostgreSQL has it, so that it survives a loss of Redis. False if the moderator
    does not wait for that.
    """

    act_id: str
    score: int | None
    is_committed: bool


class Moderator:
    """Performs acts on one board. ``connection`` is in autocommit; close it at the end."""

    def __init__(
        self,
        store: Store,
        connection: Connection,
        board: Board,
        *,
        actor: str,
        stream_cap: int,
        awaits_commit: bool = True,
    ) -> None:
        """``awaits_commit`` false: the caller waits itself, without the operators' lock."""
        self._store = store
        self._connection = connection
        self._board = board
        self._actor = actor
        self._stream_cap = stream_cap
        self._awaits_commit = awaits_commit

    async def plan(self, request: Request) -> Plan:
        """Return what a request would do.

        Raises NotFound, OperatorMistake (it is not possible, or the board's ledger is detached),
        WaitTimeout, RedisUnavailable, DatabaseUnavailable.
        """
        if not isinstance(request, BanChange):
            await require_ledger(self._connection, self._board.name)
        return await request.plan(self._store, self._connection, self._board)

    async def perform(
        self, request: Request, plan: Plan, *, reason: str, act_id: str | None = None
    ) -> Done:
        """Record and apply an act, if the request still has this plan.

        With an ``act_id``, of 16 hexadecimal digits, a call can be repeated: see ``repeat``.

        Raises OperatorMistake (the plan has changed, or another operator works on the partition),
        ScoreOutOfRange (nothing was changed), RedisUnavailable and other Unavailable errors: the
        act is recorded, complete it with ``resume``. Raises ActConflict as ``repeat`` does.
        """
        await lock_partitions(self._connection, [home_of(self._board, plan.user_id)])
        if act_id is not None:
            done = await self.repeat(request, reason=reason, act_id=act_id)
            if done is not None:
                return done
        await require_no_pending(self._connection, self._board, plan.user_id)
        if await self.plan(request) != plan:
            raise OperatorMistake("The actions have changed meanwhile; try again")
        act = NewAct(
            id=act_id or secrets.token_hex(8),
            board=self._board.name,
            user_id=plan.user_id,
            kind=plan.kind,
            delta=plan.delta,
            actor=self._actor,
            reason=reason,
            detail=plan.detail,
            undoes=plan.undoes,
            actions=plan.actions,
        )
        await self._record(act, plan.held_id)
        return await self._apply(await select_act(self._connection, act.id))

    async def repeat(self, request: Request, *, reason: str, act_id: str) -> Done | None:
        """Complete the act of an earlier call; None if it was not recorded.

        Raises ActConflict if the act is another one, and what ``resume`` raises.
        """
        try:
            act = await select_act(self._connection, act_id)
        except NotFound:
            return None
        if (act.board, act.actor, act.reason) != (self._board.name, self._actor, reason) or (
            not request.is_of(act)
        ):
            raise ActConflict(f"Act {act_id} is another one; choose a new id")
        return await self.resume(act_id)

    async def resume(self, act_id: str) -> Done:
        """Complete an act that was interrupted; a completed one is not changed.

        Raises NotFound, OperatorMistake, ScoreOutOfRange, Unavailable errors.
        """
        act = await select_act(self._connection, act_id)
        await lock_partitions(self._connection, [home_of(self._board, act.user_id)])
        act = await select_act(self._connection, act_id)
        if act.state == "refused":
            raise OperatorMistake(f"Act {act_id} was refused and changed nothing")
        return await self._apply(act)

    async def _record(self, act: NewAct, held_id: int | None) -> None:
        async with audited(self._connection) as trail:
            is_ban = act.kind in {"ban", "unban"}
            partition = home_of(self._board, act.user_id)
            if is_ban and not await lock_bans(self._connection, partition):
                raise no_position(partition)
            await insert_act(self._connection, act)
            if is_ban:
                change = insert_ban if act.kind == "ban" else delete_ban
                if not await change(self._connection, act.id):
                    raise OperatorMistake("The ban has changed meanwhile; try again")
            if held_id is not None and not await release_held(self._connection, held_id, act.id):
                raise OperatorMistake(f"Held action {held_id} was released or voided meanwhile")
            await trail.insert(
                actor=act.actor,
                action=f"act {act.kind}",
                board=act.board,
                detail={
                    "act": act.id,
                    "user": act.user_id,
                    "delta": act.delta,
                    "reason": act.reason,
                    **act.detail,
                },
            )

    async def _apply(self, act: Act) -> Done:
        if act.kind in {"ban", "unban"}:
            await self.mirror_ban(act.user_id)
            return Done(act.id, None, is_committed=True)
        if act.state == "applied":
            return Done(act.id, None, is_committed=True)
        acted = await self._store.act(
            home_of(self._board, act.user_id),
            self._board.layout,
            user_id=act.user_id,
            action_id=action_id_of(act.id),
            delta=act.delta,
            stream_cap=self._stream_cap,
            moved_from=act.detail.get("from") if act.kind == "release" else None,
            season=act.detail.get("season", ""),
        )
        match acted.outcome:
            case "applied" | "replayed":
                is_committed = self._awaits_commit and await self._is_committed(act.id)
                return Done(act.id, acted.score, is_committed)
            case "range":
                await self._refuse(act)
                rules = self._board.layout.rules
                raise ScoreOutOfRange(
                    f"The score of {act.user_id} is {acted.score}; {act.delta:+} would take it out "
                    f"of {rules.act_min} to {rules.score_max}. Act {act.id} changed nothing"
                )
            case "moved":
                await self._refuse(act)
                raise OperatorMistake(
                    f"The score of {act.user_id} has changed to {acted.score} meanwhile, so act "
                    f"{act.id} changed nothing; try again"
                )
            case "closed":
                await self._refuse(act)
                raise OperatorMistake(
                    f"The season of act {act.id} ended before it was applied. It changed nothing"
                )
            case outcome:
                raise ScriptFailed(f"unknown outcome {outcome}")

    async def mirror_ban(self, user_id: str) -> None:
        """Make Redis what PostgreSQL says about a user: score, place and ban.

        Raises the errors of scoreboard.recovery.corrections.correct_users.
        """
        partition = home_of(self._board, user_id)
        async with translate_errors(), self._connection.transaction():
            position = await lock_position_shared(self._connection, partition)
            if position is None:
                raise no_position(partition)
            await correct_users(self._store, self._connection, partition, [user_id], position)

    async def void_held(self, held_id: int, *, reason: str) -> None:
        """Void a held action of the board: it never counts.

        Raises NotFound, OperatorMistake (it is released or voided already), DatabaseUnavailable.
        """
        held = await select_held_action(self._connection, self._board.name, held_id)
        require_held(held)
        async with audited(self._connection) as trail:
            if not await void_held(self._connection, held_id, actor=self._actor, reason=reason):
                raise OperatorMistake(f"Held action {held_id} was released or voided meanwhile")
            await trail.insert(
                actor=self._actor,
                action="held void",
                board=self._board.name,
                detail={
                    "held": held_id,
                    "user": held.user_id,
                    "action": held.action_id,
                    "delta": held.delta,
                    "reason": reason,
                },
            )

    async def _refuse(self, act: Act) -> None:
        async with audited(self._connection) as trail:
            await refuse_act(self._connection, act.id)
            await trail.insert(
                actor=self._actor,
                action="act refuse",
                board=act.board,
                detail={"act": act.id, "user": act.user_id, "delta": act.delta},
            )

    async def _is_committed(self, act_id: str) -> bool:
        deadline = time.monotonic() + COMMIT_S
        while (await select_act(self._connection, act_id)).state != "applied":
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(POLL_S)
        return True
