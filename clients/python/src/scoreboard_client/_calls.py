"""What can be asked of the service: a function for each endpoint returns the request to send."""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar
from urllib.parse import quote

from msgspec import UNSET, json

from . import _models as models

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Parameter = str | int | bool | None


@dataclass(frozen=True, slots=True)
class Call(Generic[T_co]):
    """One request; `body` is JSON, and None makes it a GET."""

    reply: type[T_co]
    path: str
    query: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None


def new_action_id(kind: str) -> str:
    """Return a unique `actionId` of a kind, such as `win`. Keep it until the action is counted."""
    return f"{kind}:{uuid.uuid4()}"


def update(
    user_id: str,
    action_id: str,
    *,
    points: int | None = None,
    boards: Sequence[str] = (),
    season: str | None = None,
    proof: str | None = None,
) -> Call[models.UpdateReply]:
    """Count one action, once; without `boards` on the boards of its kind.

    All tries send the same `action_id`. If this raises NoAnswerError, UnavailableError or
    RateLimitedError, call it again later with the same one.
    """
    request = models.UpdateRequest(
        user_id=user_id,
        action_id=action_id,
        points=UNSET if points is None else points,
        boards=list(boards) or UNSET,
        season=season or UNSET,
        proof=proof or UNSET,
    )
    return Call(models.UpdateReply, "/api/scores/update", body=json.encode(request))


def bulk(updates: Sequence[models.UpdateItem]) -> Call[models.BulkReply]:
    """Count up to 100 actions in one request."""
    body = json.encode(models.BulkRequest(updates=list(updates)))
    return Call(models.BulkReply, "/api/scores/updates", body=body)


def leaderboard(
    board: str | None = None,
    *,
    limit: int = 10,
    offset: int = 0,
    names: bool = True,
    season: str | None = None,
) -> Call[models.LeaderboardReply]:
    """Return `limit` rows (1 to 100) from `offset`, with names unless `names` is false."""
    return _read(
        models.LeaderboardReply,
        "/api/scores/leaderboard",
        board=board,
        limit=limit,
        offset=offset,
        names=names,
        season=season,
    )


def standing(
    user_id: str, board: str | None = None, *, around: int = 0, season: str | None = None
) -> Call[models.StandingReply]:
    """Return the rank and score of a user, and `around` neighbours (0 to 25) on each side."""
    path = f"/api/scores/users/{quote(user_id, safe='')}"
    return _read(models.StandingReply, path, board=board, around=around, season=season)


def own_standing(
    board: str | None = None, *, around: int = 0, season: str | None = None
) -> Call[models.StandingReply]:
    """Return the standing of the token's user."""
    path = "/api/scores/me"
    return _read(models.StandingReply, path, board=board, around=around, season=season)


def standings(
    user_ids: Iterable[str],
    board: str | None = None,
    *,
    names: bool = True,
    season: str | None = None,
) -> Call[models.StandingsReply]:
    """Return the standings of up to 100 users, best first."""
    ids = ",".join(user_ids)
    path = "/api/scores/users"
    return _read(models.StandingsReply, path, ids=ids, board=board, names=names, season=season)


def rank_of_score(
    score: int, board: str | None = None, *, season: str | None = None
) -> Call[models.ScoreRankReply]:
    """Return the rank that a user who reached this score now would get."""
    path = "/api/scores/rank"
    return _read(models.ScoreRankReply, path, score=score, board=board, season=season)


def cutoff(
    rank: int, board: str | None = None, *, season: str | None = None
) -> Call[models.CutoffReply]:
    """Return the score at a rank, and the score that takes it."""
    path = "/api/scores/cutoff"
    return _read(models.CutoffReply, path, rank=rank, board=board, season=season)


def seasons(
    board: str | None = None, *, limit: int = 20, before: str | None = None
) -> Call[models.SeasonsReply]:
    """Return the seasons of a board, latest first; `before` is `next` of the page before."""
    path = "/api/scores/seasons"
    return _read(models.SeasonsReply, path, board=board, limit=limit, before=before)


def history(
    user_id: str, board: str | None = None, *, limit: int = 20, before: str | None = None
) -> Call[models.HistoryReply]:
    """Return the counted actions of a user, latest first; `before` is `next` of the page before."""
    path = f"/api/scores/users/{quote(user_id, safe='')}/history"
    return _read(models.HistoryReply, path, board=board, limit=limit, before=before)


def boards(*, limit: int = 100, after: str | None = None) -> Call[models.BoardsReply]:
    """Return boards and their rules, by name; `after` is `next` of the page before."""
    return _read(models.BoardsReply, "/api/boards", limit=limit, after=after)


def board(name: str) -> Call[models.BoardReply]:
    """Return a board and its rules."""
    return _read(models.BoardReply, f"/api/boards/{quote(name, safe='')}")


def _read(reply: type[T], path: str, **parameters: Parameter) -> Call[T]:
    return Call(
        reply,
        path,
        tuple((name, _text(value)) for name, value in parameters.items() if value is not None),
    )


def _text(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
