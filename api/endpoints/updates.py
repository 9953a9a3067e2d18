"""Updates: who may send one, how many points it earns, and the call that applies it.

api.endpoints.fast_update serves updates; the handler of api.endpoints.scores is its reference
implementation, from which the documents are generated. Both call ``apply``.
"""

from api.documents.schemas import UpdateRequest
from api.edge.rate_limit import Quota, RateLimiter
from api.metrics import UPDATES
from scoreboard.errors import (
    ActionConflict,
    Busy,
    Forbidden,
    OutcomeUnknown,
    RateLimited,
    ScoreboardError,
    ScoreOutOfRange,
)
from scoreboard.model import Action, Receipt
from scoreboard.runtime.settings import Settings
from scoreboard.security.access import require_self
from scoreboard.security.tokens import UPDATE_ANY, Caller
from scoreboard.store.catalogue import Catalogue
from scoreboard.store.commit_waiter import CommitWaiter
from scoreboard.store.dispatcher import Dispatcher

_APPLIED = UPDATES.labels("applied")
_REPLAYED = UPDATES.labels("replayed")
_OUTCOMES = {
    ActionConflict: UPDATES.labels("conflict"),
    Busy: UPDATES.labels("busy"),
    ScoreOutOfRange: UPDATES.labels("range"),
    OutcomeUnknown: UPDATES.labels("unknown"),
}
_RATE_LIMITED = UPDATES.labels("rate_limited")


class UpdateService:
    """Applies the updates of authenticated callers."""

    def __init__(
        self,
        settings: Settings,
        catalogue: Catalogue,
        dispatcher: Dispatcher,
        limiter: RateLimiter | None,
        commits: CommitWaiter | None = None,
    ) -> None:
        """``limiter`` is None behind a gateway, ``commits`` if updates do not await COMMIT."""
        self._settings = settings
        self._catalogue = catalogue
        self._dispatcher = dispatcher
        self._limiter = limiter
        self._commits = commits

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
        UnknownBoard, UnknownKind, RateLimited, and what Dispatcher.submit raises.
        """
        stated_points = request.stated_points
        if not trusted:
            require_self(caller, request.user_id)
            if stated_points is not None:
                raise Forbidden(
                    f"Omit points: setting them needs the scope {UPDATE_ANY}", scope=UPDATE_ANY
                )
        board = self._settings.resolve_board(board)
        points = (
            stated_points
            if stated_points is not None
            else self._catalogue.points_of(request.action_id)
        )
        quota = None
        if self._limiter is not None:
            try:
                quota = await self._limiter.take(caller, trusted=trusted)
            except RateLimited:
                _RATE_LIMITED.inc()
                raise
        action = Action(
            request.user_id, request.action_id, points, stated_points is not None, request_id
        )
        try:
            receipt = await self._dispatcher.submit(board, action)
            if self._commits is not None:
                receipt = await self._commits.confirm(board, action, receipt)
        except ScoreboardError as error:
            outcome = _OUTCOMES.get(type(error))
            if outcome is not None:
                outcome.inc()
            raise
        (_REPLAYED if receipt.replayed else _APPLIED).inc()
        return receipt, quota
