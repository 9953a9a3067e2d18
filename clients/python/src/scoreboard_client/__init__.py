"""A client of Scoreboard: report actions, read boards, follow a live board.

`Client` blocks, `AsyncClient` is for asyncio; both have the same methods.
"""

from ._asynchronous import AsyncClient, AsyncLive
from ._blocking import Client, Live
from ._calls import new_action_id
from ._exchange import Retries
from ._follow import Patience
from ._models import (
    BoardReply,
    BoardRules,
    BoardScore,
    BoardsReply,
    BulkResult,
    CutoffReply,
    HistoryReply,
    HistoryRow,
    LeaderboardReply,
    PlacedUser,
    Problem,
    RankedUser,
    ScoreRankReply,
    SeasonsReply,
    SeasonSummary,
    StandingReply,
    StandingsReply,
    UpdateItem,
    UpdateProblem,
    UpdateReply,
)
from ._tokens import TokenReason
from .errors import (
    ConflictError,
    ForbiddenError,
    InvalidError,
    LiveStoppedError,
    NoAnswerError,
    NotFoundError,
    ProblemError,
    RateLimitedError,
    ScoreboardError,
    UnauthenticatedError,
    UnavailableError,
)
from .events import Board, Event, Place, Refused, Row, State, Status, Viewers

__all__ = [
    "AsyncClient",
    "AsyncLive",
    "Board",
    "BoardReply",
    "BoardRules",
    "BoardScore",
    "BoardsReply",
    "BulkResult",
    "Client",
    "ConflictError",
    "CutoffReply",
    "Event",
    "ForbiddenError",
    "HistoryReply",
    "HistoryRow",
    "InvalidError",
    "LeaderboardReply",
    "Live",
    "LiveStoppedError",
    "NoAnswerError",
    "NotFoundError",
    "Patience",
    "Place",
    "PlacedUser",
    "Problem",
    "ProblemError",
    "RankedUser",
    "RateLimitedError",
    "Refused",
    "Retries",
    "Row",
    "ScoreRankReply",
    "ScoreboardError",
    "SeasonSummary",
    "SeasonsReply",
    "StandingReply",
    "StandingsReply",
    "State",
    "Status",
    "TokenReason",
    "UnauthenticatedError",
    "UnavailableError",
    "UpdateItem",
    "UpdateProblem",
    "UpdateReply",
    "Viewers",
    "new_action_id",
]
