"""Updates: the calls that apply them, after api.endpoints.admission has admitted them.

api.endpoints.fast_update serves updates; the handler of api.endpoints.scores is its reference
implementation, from which the documents are generated. Both call ``apply``;
api.endpoints.bulk_update calls ``apply_each``.

Invariant: an action of several boards is sent to all of them or, if one of them refuses it
beforehand, to none; each board counts it once, so it can be repeated after any answer.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from msgspec import UNSET, Struct

from api.documents.schemas import UpdateItem, UpdateRequest
from api.edge.rate_limit import Quota, RateLimiter
from api.endpoints.admission import Admission, Admitted
from api.metrics import UPDATES
from scoreboard.errors import (
    ActionConflict,
    Banned,
    BoardArchived,
    Busy,
    ClientError,
    Invalid,
    OutcomeUnknown,
    RateLimited,
    ScoreboardError,
    ScoreOutOfRange,
    SeasonClosed,
    Unavailable,
    Uninitialised,
)
from scoreboard.model import Action, Receipt
from scoreboard.security.tokens import Caller
from scoreboard.store.board_directory import BoardDirectory
from scoreboard.store.commit_waiter import CommitWaiter
from scoreboard.store.dispatcher import Dispatcher

_OUTCOMES: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (ActionConflict, "conflict"),
    (Banned, "banned"),
    (BoardArchived, "archived"),
    (SeasonClosed, "season_closed"),
    (Busy, "busy"),
    (ScoreOutOfRange, "range"),
    (RateLimited, "rate_limited"),
    (OutcomeUnknown, "unknown"),
    (Unavailable, "unavailable"),
    (BaseException, "unknown"),
)
"""The first matching class determines the outcome."""


class Outcome(Struct, frozen=True):
    """What happened to an action on each board that it names, in its order."""

    receipts: dict[str, Receipt]
    errors: dict[str, ScoreboardError]
    """Of the boards that have not counted the action, or may not have."""

    @property
    def error(self) -> ScoreboardError | None:
        """The error to answer with, if a board has not counted the action.

        An error after which the request is to be repeated comes before a final one, because the
        other boards then count the action.
        """
        return min(
            self.errors.values(),
            key=lambda error: isinstance(error, ClientError),
            default=None,
        )


class _Planned(Struct, frozen=True):
    """An action as one board will count it."""

    board: str
    action: Action


class UpdateService:
    """Applies the updates of authenticated callers."""

    def __init__(
        self,
        directory: BoardDirectory,
        admission: Admission,
        dispatcher: Dispatcher,
        limiter: RateLimiter | None,
        *,
        commits: CommitWaiter | None,
        note_update: Callable[[str], None],
    ) -> None:
        """``limiter`` is None behind a gateway, ``commits`` if updates do not await COMMIT.

        ``note_update`` is called with the board before an update is answered.
        """
        self._directory = directory
        self._admission = admission
        self._dispatcher = dispatcher
        self._limiter = limiter
        self._commits = commits
        self._note_update = note_update

    async def apply(
        self,
        caller: Caller,
        request: UpdateRequest,
        board: str | None,
        request_id: str,
        *,
        trusted: bool,
    ) -> tuple[Receipt | Outcome, Quota | None]:
        """Apply one action; return its receipt and the rest of the caller's quota.

        It is an outcome if the request names boards, or the catalogue several for its kind; the
        action counts once for the quota. ``trusted`` callers may update any user and set the
        points. Raises Invalid, RateLimited, and what Admission, BoardDirectory.find and, for one
        board, Dispatcher.submit raise.
        """
        if request.boards is not UNSET:
            if board is not None:
                raise Invalid("Name a board in the query or boards in the body, not both")
            named = request.boards
        else:
            named = () if board is None else (board,)
        admitted = await self._admission.admit(caller, request, named, trusted=trusted)
        if request.boards is not UNSET or len(admitted.boards) > 1:
            planned = await self._plan(request, admitted, request_id)
            quota = await self._take(caller, trusted=trusted)
            return await self._count_on_boards(planned), quota
        name = admitted.boards[0] if admitted.boards else None
        found = self._directory.known(name) or await self._directory.find(name)
        action = self._admission.action_on(found, request, admitted, request_id)
        quota = None
        if self._limiter is not None:
            quota = await self._take(caller, trusted=trusted)
        return await self._count(found.name, action), quota

    async def apply_each(
        self, caller: Caller, items: Sequence[UpdateItem | ScoreboardError], request_id: str
    ) -> tuple[list[Outcome | ScoreboardError], Quota | None]:
        """Apply the actions of a trusted caller, all at once; return what happened to each.

        An item that could not be parsed is its error. Actions that are equal are applied in order.
        Raises what the limiter raises if it cannot count.
        """
        results: list[Outcome | ScoreboardError] = []
        planned: dict[int, list[_Planned]] = {}
        for number, item in enumerate(items):
            found = await self._plan_item(caller, item, request_id)
            if isinstance(found, ScoreboardError):
                UPDATES["refused"] += 1
                results.append(found)
            else:
                planned[number] = found
                results.append(OutcomeUnknown())  # replaced below
        quota = None
        if self._limiter is not None and planned:
            granted, quota, refusal = await self._limiter.take_some(caller, len(planned))
            if refusal is not None:
                for number in list(planned)[granted:]:
                    UPDATES["rate_limited"] += 1
                    results[number] = refusal
                    del planned[number]
        chains: dict[tuple[str, str], list[int]] = {}
        for number, one in planned.items():
            action = one[0].action
            chains.setdefault((action.user_id, action.action_id), []).append(number)

        async def count_in_order(numbers: Iterable[int]) -> None:
            for number in numbers:
                results[number] = await self._count_on_boards(planned[number])

        await asyncio.gather(*map(count_in_order, chains.values()))
        return results, quota

    async def _plan(
        self, request: UpdateRequest, admitted: Admitted, request_id: str
    ) -> list[_Planned]:
        """Return the action of a request for each of its boards.

        Raises Invalid for a season with several boards: one could end it before the others count.
        """
        names = admitted.boards or (None,)
        if request.season is not UNSET and len(names) > 1:
            raise Invalid("season: state it for one board at a time, each has seasons of its own")
        boards = [self._directory.known(name) or await self._directory.find(name) for name in names]
        return [
            _Planned(found.name, self._admission.action_on(found, request, admitted, request_id))
            for found in boards
        ]

    async def _plan_item(
        self, caller: Caller, item: UpdateItem | ScoreboardError, request_id: str
    ) -> list[_Planned] | ScoreboardError:
        if isinstance(item, ScoreboardError):
            return item
        if item.boards is not UNSET:
            named = item.boards
        else:
            named = () if item.board is UNSET else (item.board,)
        try:
            admitted = await self._admission.admit(caller, item, named, trusted=True)
            return await self._plan(item, admitted, request_id)
        except ScoreboardError as error:
            return error

    async def _take(self, caller: Caller, *, trusted: bool) -> Quota | None:
        if self._limiter is None:
            return None
        try:
            return await self._limiter.take(caller, trusted=trusted)
        except BaseException as error:
            _count_failure(error)
            raise

    async def _count(self, board: str, action: Action) -> Receipt:
        """Send an action to a board; return the permanent answer."""
        try:
            receipt = await self._dispatcher.submit(board, action)
            if self._commits is not None:
                receipt = await self._commits.confirm(board, action, receipt)
        except BaseException as error:  # also the cancellation at the time limit
            if isinstance(error, Uninitialised):
                self._directory.forget(board)  # possibly it was deleted
            _count_failure(error)
            raise
        finally:
            self._note_update(board)
        UPDATES["replayed" if receipt.replayed else "held" if receipt.held else "applied"] += 1
        return receipt

    async def _count_on_boards(self, planned: Sequence[_Planned]) -> Outcome:
        """Send an action to all its boards in one turn of the event loop, so in one write."""
        outcome = Outcome({}, {})
        found = await asyncio.gather(*map(self._try_to_count, planned))
        for one, result in zip(planned, found, strict=True):
            if isinstance(result, Receipt):
                outcome.receipts[one.board] = result
            else:
                outcome.errors[one.board] = result
        return outcome

    async def _try_to_count(self, planned: _Planned) -> Receipt | ScoreboardError:
        try:
            return await self._count(planned.board, planned.action)
        except ScoreboardError as error:
            return error


def _count_failure(error: BaseException) -> None:
    UPDATES[next(word for kind, word in _OUTCOMES if isinstance(error, kind))] += 1
