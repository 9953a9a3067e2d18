"""Updates: who may send one, how many points it earns, and the call that applies it.

api.endpoints.fast_update serves updates; the handler of api.endpoints.scores is its reference
implementation, from which the documents are generated. Both call ``apply``.
"""

from collections.abc import Callable
from typing import Final

from api.documents.schemas import UpdateRequest
from api.edge.rate_limit import Quota, RateLimiter
from api.endpoints.points import points_of
from api.metrics import UPDATES
from scoreboard.errors import (
    ActionConflict,
    BoardArchived,
    Busy,
    OutcomeUnknown,
    RateLimited,
    ScoreOutOfRange,
    Unavailable,
    Uninitialised,
)
from scoreboard.model import Action, Receipt
from scoreboard.security.access import require_self
from scoreboard.security.tokens import Caller
from scoreboard.store.board_directory import BoardDirectory
from scoreboard.store.catalogue import Catalogue
from scoreboard.store.commit_waiter import CommitWaiter
from scoreboard.store.dispatcher import Dispatcher

_OUTCOMES: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (ActionConflict, "conflict"),
    (BoardArchived, "archived"),
    (Busy, "busy"),
    (ScoreOutOfRange, "range"),
    (RateLimited, "rate_limited"),
    (OutcomeUnknown, "unknown"),
    (Unavailable, "unavailable"),
    (BaseException, "unknown"),
)
"""The first matching class determines the outcome."""


class UpdateService:
    """Applies the updates of authenticated callers."""

    def __init__(
        self,
        directory: BoardDirectory,
        catalogue: Catalogue,
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
        self._catalogue = catalogue
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
    ) -> tuple[Receipt, Quota | None]:
        """Apply one action; return its receipt and the rest of the caller's quota.

        ``trusted`` callers may update any user and set the points. Raises Forbidden,
        UnknownKind, RateLimited, and what BoardDirectory.find, points_of and Dispatcher.submit
        raise.
        """
        if not trusted:
            require_self(caller, request.user_id)
        found = self._directory.known(board) or await self._directory.find(board)
        rules = found.layout.rules
        stated = request.stated_points
        points = points_of(request.action_id, stated, rules, self._catalogue, trusted=trusted)
        quota = None
        action = Action(
            request.user_id, request.action_id, points, stated is not None, request_id, rules
        )
        try:
            if self._limiter is not None:
                quota = await self._limiter.take(caller, trusted=trusted)
            receipt = await self._dispatcher.submit(found.name, action)
            if self._commits is not None:
                receipt = await self._commits.confirm(found.name, action, receipt)
        except BaseException as error:  # also the cancellation at the time limit
            if isinstance(error, Uninitialised):
                self._directory.forget(found.name)  # possibly it was deleted
            UPDATES[next(word for kind, word in _OUTCOMES if isinstance(error, kind))] += 1
            raise
        finally:
            self._note_update(found.name)
        UPDATES["replayed" if receipt.replayed else "applied"] += 1
        return receipt, quota
