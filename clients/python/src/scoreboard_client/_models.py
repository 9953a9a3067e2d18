"""Requests and responses. Written by `make clients-models` from docs/openapi.json."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct, UnsetType, field


class BoardRules(Struct, kw_only=True):
    """How actions change the scores of a board. They never change."""

    operator: str
    order: str
    min: int
    max: int
    lowering: str
    points: str
    season: str | UnsetType = UNSET
    time_zone: str | UnsetType = field(name="timeZone", default=UNSET)


class BoardScore(Struct, kw_only=True):
    """The result of an action on one of its boards."""

    score: int
    replayed: bool
    held: bool | UnsetType = UNSET


class CutoffReply(Struct, kw_only=True):
    """The score at a rank, and the score with which another user takes it."""

    rank: int
    total: int
    epoch: int
    seq: int
    score: int | UnsetType = UNSET
    needed: int | UnsetType = UNSET
    season: str | UnsetType = UNSET


class HistoryRow(Struct, kw_only=True):
    """One counted action of a user."""

    action_id: str = field(name="actionId")
    delta: int
    score: int
    at: int


class PlacedUser(Struct, kw_only=True):
    """A user's rank on the board and its place among the users asked for."""

    rank: int
    user_id: str = field(name="userId")
    score: int
    place: int
    name: str | UnsetType = UNSET
    metadata: Any | UnsetType = UNSET


class Problem(Struct, kw_only=True):
    """A problem document (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str


class RankedUser(Struct, kw_only=True):
    """One row of a ranking. Ranks are unique; equal scores are ordered by the time reached."""

    rank: int
    user_id: str = field(name="userId")
    score: int
    name: str | UnsetType = UNSET
    metadata: Any | UnsetType = UNSET


class ScoreRankReply(Struct, kw_only=True):
    """The rank that a user who reached a score now would get."""

    score: int
    rank: int
    equals: int
    total: int
    epoch: int
    seq: int
    season: str | UnsetType = UNSET


class SeasonSummary(Struct, kw_only=True):
    """A season of a board."""

    id: str
    starts_at: int = field(name="startsAt")
    ends_at: int = field(name="endsAt")
    state: str
    users: int
    winners: list[RankedUser]
    revised_at: int | UnsetType = field(name="revisedAt", default=UNSET)


class SeasonsReply(Struct, kw_only=True):
    """A page of the seasons of a board, latest first."""

    seasons: list[SeasonSummary]
    next: str | UnsetType = UNSET


class StandingReply(Struct, kw_only=True):
    """A user's standing, with neighbouring rows if requested."""

    user_id: str = field(name="userId")
    rank: int
    score: int
    total: int
    epoch: int
    seq: int
    neighbours: list[RankedUser]
    percentile: float
    season: str | UnsetType = UNSET


class StandingsReply(Struct, kw_only=True):
    """The standings of some users, best first."""

    users: list[PlacedUser]
    not_found: list[str] = field(name="notFound")
    total: int
    epoch: int
    seq: int
    season: str | UnsetType = UNSET


class UpdateItem(Struct, kw_only=True):
    """One action of a bulk request."""

    user_id: str = field(name="userId")
    action_id: str = field(name="actionId")
    points: int | UnsetType = UNSET
    boards: list[str] | UnsetType = UNSET
    season: str | UnsetType = UNSET
    proof: str | UnsetType = UNSET
    board: str | UnsetType = UNSET


class UpdateProblem(Struct, kw_only=True):
    """A problem, and what happened on each board if the action names several."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    scores: dict[str, BoardScore] | UnsetType = UNSET
    problems: dict[str, Problem] | UnsetType = UNSET


class UpdateReply(Struct, kw_only=True):
    """The result of an action; a repeated request gets the same `newScore`."""

    success: bool
    new_score: int = field(name="newScore")
    replayed: bool
    scores: dict[str, BoardScore] | UnsetType = UNSET
    held: bool | UnsetType = UNSET


class UpdateRequest(Struct, kw_only=True):
    """One action of one user. An `actionId` is applied once, however often it is sent."""

    user_id: str = field(name="userId")
    action_id: str = field(name="actionId")
    points: int | UnsetType = UNSET
    boards: list[str] | UnsetType = UNSET
    season: str | UnsetType = UNSET
    proof: str | UnsetType = UNSET


class BoardReply(Struct, kw_only=True):
    """A board and its rules."""

    name: str
    public: bool
    state: str
    rules: BoardRules


class BoardsReply(Struct, kw_only=True):
    """A page of boards, by name."""

    boards: list[BoardReply]
    next: str | UnsetType = UNSET


class BulkRequest(Struct, kw_only=True):
    """Actions of any users. Each counts by itself, and can be repeated by itself."""

    updates: list[UpdateItem]


class BulkResult(Struct, kw_only=True):
    """What happened to one action of a bulk request."""

    outcome: str
    new_score: int | UnsetType = field(name="newScore", default=UNSET)
    scores: dict[str, BoardScore] | UnsetType = UNSET
    problem: UpdateProblem | UnsetType = UNSET
    retry_after: int | UnsetType = field(name="retryAfter", default=UNSET)


class HistoryReply(Struct, kw_only=True):
    """A page of the counted actions of a user on a board, latest first."""

    user_id: str = field(name="userId")
    history: list[HistoryRow]
    next: str | UnsetType = UNSET


class LeaderboardReply(Struct, kw_only=True):
    """A page of the ranking."""

    leaderboard: list[RankedUser]
    total: int
    epoch: int
    seq: int
    season: str | UnsetType = UNSET
    ends_at: int | UnsetType = field(name="endsAt", default=UNSET)


class BulkReply(Struct, kw_only=True):
    """What happened to each action of a bulk request."""

    success: bool
    results: list[BulkResult]
