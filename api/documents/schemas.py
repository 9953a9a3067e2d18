"""Requests and replies of the API as types, for parsing, encoding and the documents."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType
from msgspec.structs import astuple

from scoreboard.health.checks import Check
from scoreboard.http.problems import Problem
from scoreboard.model import (
    ACT_KIND,
    BOARDS_MAX,
    BULK_MAX,
    USERS_MAX,
    ActionId,
    BoardName,
    BoardState,
    Lowering,
    Operator,
    Order,
    PointsFrom,
    Rules,
    SeasonId,
    StatedPoints,
    UserId,
    kind_of,
    require_whole,
)

BoardNames = Annotated[tuple[BoardName, ...], Meta(min_length=1, max_length=BOARDS_MAX)]


class UpdateRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """One action of one user. An `actionId` is applied once, however often it is sent."""

    user_id: UserId
    action_id: ActionId
    points: Annotated[
        StatedPoints | float | UnsetType,
        Meta(
            description="What the action adds to the score; on a board with the operator `best` or "
            "`last` the value that it states. By default the catalogue sets it, and stating it "
            "requires `update:score:any`: 1 to 1000000. A board whose rules say `points: stated` "
            "requires it of every caller, a board with values takes 0 to 2147483647, and one that "
            "allows lowering takes -1000000 to 1000000."
        ),
    ] = UNSET
    boards: Annotated[
        BoardNames | UnsetType,
        Meta(description="The boards that count the action, in place of the parameter `board`."),
    ] = UNSET
    season: SeasonId | UnsetType = UNSET
    proof: Annotated[
        str | UnsetType,
        Meta(
            description="A game server's signature that the user did this action (a JWS of at most "
            "2048 bytes). It sets the points. Kinds of actions can require one."
        ),
    ] = UNSET

    def __repr__(self) -> str:
        """Return the ids only: who reads the proof of an action could send the action."""
        return f"UpdateRequest(user_id={self.user_id!r}, action_id={self.action_id!r})"

    def __post_init__(self) -> None:
        """Check what the schema cannot express.

        What a board takes is checked when its rules are known (api.endpoints.points).
        """
        if kind_of(self.action_id) == ACT_KIND:
            raise ValueError(
                f"actionId must not begin with {ACT_KIND}: as acts of administrators do"
            )
        if isinstance(self.points, float):
            require_whole(self.points)
        if self.boards is not UNSET and len(set(self.boards)) < len(self.boards):
            raise ValueError("boards must be distinct")

    @property
    def stated_points(self) -> int | None:
        """The points as an integer; None if omitted."""
        return None if self.points is UNSET else int(self.points)


class UpdateItem(
    UpdateRequest, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"
):
    """One action of a bulk request."""

    board: Annotated[
        BoardName | UnsetType, Meta(description="The board; the default board if omitted.")
    ] = UNSET

    def __post_init__(self) -> None:
        """Check what the schema cannot express."""
        super().__post_init__()
        if self.board is not UNSET and self.boards is not UNSET:
            raise ValueError("name board or boards, not both")


class BulkRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Actions of any users. Each counts by itself, and can be repeated by itself."""

    updates: Annotated[
        list[UpdateItem],
        Meta(min_length=1, max_length=BULK_MAX),
    ]


IsHeld = Annotated[
    bool | UnsetType,
    Meta(
        description="Present and true if the action exceeds a limit of the board: it is recorded "
        "and changes no score unless an administrator releases it."
    ),
]


class BoardScore(Struct, frozen=True, omit_defaults=True):
    """The result of an action on one of its boards."""

    score: Annotated[int, Meta(ge=0, description="The user's score after this action.")]
    replayed: Annotated[bool, Meta(description="True if it was applied before this request.")]
    held: IsHeld = UNSET


class UpdateReply(Struct, frozen=True, rename="camel", omit_defaults=True):
    """The result of an action; a repeated request gets the same `newScore`."""

    success: Annotated[bool, Meta(description="Always true; errors are problems.")]
    new_score: Annotated[int, Meta(ge=0, description="The user's score after this action.")]
    replayed: Annotated[
        bool, Meta(description="True if the action was applied before this request.")
    ]
    scores: Annotated[
        dict[str, BoardScore] | UnsetType,
        Meta(description="With `boards`: the result on each; the members above are those of the "
             "first one."),
    ] = UNSET  # fmt: skip
    held: IsHeld = UNSET


class UpdateProblem(Problem, frozen=True, kw_only=True, omit_defaults=True):
    """A problem, and what happened on each board if the action names several."""

    scores: Annotated[
        dict[str, BoardScore] | UnsetType,
        Meta(description="The boards that have counted the action."),
    ] = UNSET
    problems: Annotated[
        dict[str, Problem] | UnsetType,
        Meta(description="The boards that have not counted it, or may not have."),
    ] = UNSET


class BulkResult(Struct, frozen=True, rename="camel", omit_defaults=True):
    """What happened to one action of a bulk request."""

    outcome: Annotated[
        Literal["applied", "replayed", "held", "problem"],
        Meta(
            description="`replayed`: the action was applied before this request; `held`: it "
            "exceeds a limit of the board and changes no score unless it is released."
        ),
    ]
    new_score: Annotated[
        int | UnsetType, Meta(description="The user's score after the action.")
    ] = UNSET
    scores: Annotated[
        dict[str, BoardScore] | UnsetType,
        Meta(description="With `boards`: the result on each; the members above are those of the "
             "first one."),
    ] = UNSET  # fmt: skip
    problem: Annotated[
        UpdateProblem | UnsetType, Meta(description="Why the action was not counted.")
    ] = UNSET
    retry_after: Annotated[
        int | UnsetType,
        Meta(description="Seconds after which to send this action again; omitted if the problem is "
             "final."),
    ] = UNSET  # fmt: skip


class BulkReply(Struct, frozen=True):
    """What happened to each action of a bulk request."""

    success: Annotated[bool, Meta(description="Whether no action has a problem.")]
    results: Annotated[
        tuple[BulkResult, ...], Meta(description="One for each action, in the same order.")
    ]


class RankedUser(Struct, frozen=True, rename="camel", omit_defaults=True):
    """One row of a ranking. Ranks are unique; equal scores are ordered by the time reached.

    On a board of several partitions this holds within each partition; equal scores of different
    partitions have a fixed order.
    """

    rank: Annotated[int, Meta(ge=1)]
    user_id: UserId
    score: Annotated[int, Meta(ge=0)]
    name: Annotated[str | UnsetType, Meta(description="With `names=true`, if known.")] = UNSET
    metadata: Annotated[
        Raw | UnsetType,
        Meta(
            description="With `names=true`, if the operator has set any: at most 1 KiB.",
            extra_json_schema={"type": "object"},
        ),
    ] = UNSET


EndsAt = Annotated[
    int | UnsetType,
    Meta(
        description="When the season ends, ms since 1970; not in final standings. If it is past, "
        "the next season has not begun yet."
    ),
]


class LeaderboardReply(Struct, frozen=True, rename="camel", omit_defaults=True):
    """A page of the ranking."""

    leaderboard: tuple[RankedUser, ...]
    total: Annotated[int, Meta(ge=0, description="Users on the board.")]
    epoch: Annotated[
        int,
        Meta(
            description="Epoch of the board; increases when the board is reloaded. 0 in final "
            "standings."
        ),
    ]
    seq: Annotated[
        int, Meta(description="Increases with each change; comparable only within an epoch.")
    ]
    season: SeasonId | UnsetType = UNSET
    ends_at: EndsAt = UNSET


class SeasonSummary(Struct, frozen=True, rename="camel", omit_defaults=True):
    """A season of a board."""

    id: SeasonId
    starts_at: Annotated[int, Meta(description="When it began, ms since 1970.")]
    ends_at: Annotated[int, Meta(description="When it ends, ms since 1970; outside of it.")]
    state: Annotated[
        Literal["open", "final"],
        Meta(description="`final`: its standings change only by a revision."),
    ]
    users: Annotated[int, Meta(ge=0, description="Users in the final standings; 0 before.")]
    winners: Annotated[
        tuple[RankedUser, ...],
        Meta(description="The first three of the final standings; empty before."),
    ]
    revised_at: Annotated[
        int | UnsetType,
        Meta(description="When the final standings were last computed again, ms since "
             "1970: an action of the season was counted later, or an operator asked for it; "
             "omitted if never."),
    ] = UNSET  # fmt: skip


class SeasonsReply(Struct, frozen=True, omit_defaults=True):
    """A page of the seasons of a board, latest first."""

    seasons: tuple[SeasonSummary, ...]
    next: SeasonId | UnsetType = UNSET


class StandingReply(Struct, frozen=True, rename="camel", omit_defaults=True):
    """A user's standing, with neighbouring rows if requested."""

    user_id: UserId
    rank: Annotated[int, Meta(ge=1)]
    score: Annotated[int, Meta(ge=0)]
    total: Annotated[int, Meta(ge=0)]
    epoch: int
    seq: int
    neighbours: Annotated[
        tuple[RankedUser, ...],
        Meta(description="The user's row and `around` rows on each side (near the start or the end "
             "of the ranking more on the other side)."),
    ]  # fmt: skip
    percentile: Annotated[
        float,
        Meta(ge=0, le=100, description="Share of the other users that rank below, in percent, "
             "rounded down to 0.01: 100 for the first user only, 0 for the last."),
    ]  # fmt: skip
    season: SeasonId | UnsetType = UNSET


class PlacedUser(RankedUser, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A user's rank on the board and its place among the users asked for."""

    place: Annotated[int, Meta(ge=1, le=USERS_MAX, description="Rank among the users asked for.")]


class StandingsReply(Struct, frozen=True, rename="camel", omit_defaults=True):
    """The standings of some users, best first."""

    users: tuple[PlacedUser, ...]
    not_found: Annotated[
        tuple[UserId, ...],
        Meta(description="Users without a score on the board, in the order asked for."),
    ]
    total: Annotated[int, Meta(ge=0, description="Users on the board.")]
    epoch: int
    seq: int
    season: SeasonId | UnsetType = UNSET


class ScoreRankReply(Struct, frozen=True, omit_defaults=True):
    """The rank that a user who reached a score now would get."""

    score: Annotated[int, Meta(ge=0)]
    rank: Annotated[int, Meta(ge=1, description="A new arrival ranks last among equals.")]
    equals: Annotated[int, Meta(ge=0, description="Users who have this score.")]
    total: Annotated[int, Meta(ge=0, description="Users on the board.")]
    epoch: int
    seq: int
    season: SeasonId | UnsetType = UNSET


class CutoffReply(Struct, frozen=True, omit_defaults=True):
    """The score at a rank, and the score with which another user takes it."""

    rank: Annotated[int, Meta(ge=1)]
    total: Annotated[int, Meta(ge=0, description="Users on the board.")]
    epoch: int
    seq: int
    score: Annotated[
        int | UnsetType,
        Meta(description="Score of the user at this rank; omitted if the board has fewer users."),
    ] = UNSET
    needed: Annotated[
        int | UnsetType,
        Meta(description="The score with which a user who ranks below takes the rank now: a new "
             "arrival ranks last among equals. The worst score that the board allows if it has "
             "fewer users; omitted if no score suffices."),
    ] = UNSET  # fmt: skip
    season: SeasonId | UnsetType = UNSET


class HistoryRow(Struct, frozen=True, rename="camel"):
    """One counted action of a user."""

    action_id: ActionId
    delta: Annotated[int, Meta(description="What the action added to the score.")]
    score: Annotated[int, Meta(ge=0, description="The score after the action.")]
    at: Annotated[int, Meta(description="When it was counted, in ms since 1970.")]


class HistoryReply(Struct, frozen=True, rename="camel", omit_defaults=True):
    """A page of the counted actions of a user on a board, latest first."""

    user_id: UserId
    history: tuple[HistoryRow, ...]
    next: Annotated[
        str | UnsetType,
        Meta(description="`before` of the next page; omitted on the last one."),
    ] = UNSET


class BoardRules(Struct, frozen=True, rename="camel", omit_defaults=True):
    """How actions change the scores of a board. They never change."""

    operator: Annotated[
        Operator,
        Meta(description="`add`: an action adds its points; `best`: the score is the best value of "
             "all actions; `last`: the value of the last action."),
    ]  # fmt: skip
    order: Annotated[Order, Meta(description="Which scores are first.")]
    min: Annotated[int, Meta(ge=0, description="Lowest possible score.")]
    max: Annotated[int, Meta(ge=0, description="Highest possible score.")]
    lowering: Annotated[
        Lowering,
        Meta(description="Who may send negative points; `trusted`: callers with "
             "`update:score:any`."),
    ]  # fmt: skip
    points: Annotated[
        PointsFrom,
        Meta(description="Whether the catalogue of actions sets the points, or players state "
             "them."),
    ]  # fmt: skip
    season: Annotated[
        str | UnsetType,
        Meta(description="How long a season is: `daily`, `weekly`, `monthly` or `cron:` and an "
             "expression; omitted on a board without seasons."),
    ] = UNSET  # fmt: skip
    time_zone: Annotated[
        str | UnsetType, Meta(description="The IANA time zone of the seasons.")
    ] = UNSET

    @classmethod
    def of(cls, rules: Rules) -> "BoardRules":
        """Return the rules as the API shows them."""
        operator, order, low, high, lowering, points, season, zone = astuple(rules)
        fixed = (operator, order, low, high, lowering, points)
        return cls(*fixed, season or UNSET, zone or UNSET)


class BoardReply(Struct, frozen=True):
    """A board and its rules."""

    name: BoardName
    public: Annotated[bool, Meta(description="False: reading needs a token.")]
    state: Annotated[BoardState, Meta(description="An `archived` board accepts no actions.")]
    rules: BoardRules


class BoardsReply(Struct, frozen=True, omit_defaults=True):
    """A page of boards, by name."""

    boards: tuple[BoardReply, ...]
    next: Annotated[
        str | UnsetType,
        Meta(description="`after` of the next page; omitted on the last page."),
    ] = UNSET


class Alive(Struct, frozen=True):
    """The process is running."""

    status: str = "alive"


class Readiness(Struct, frozen=True):
    """Whether this process should get requests, and the state of each dependency."""

    status: Annotated[str, Meta(description="`ready`, `not ready` or `draining`.")]
    checks: dict[str, Check]


class SignInConfig(Struct, frozen=True, rename="camel"):
    """How the live page signs players in (web/sign-in.js)."""

    issuer: str
    client_id: str
    audience: str


class PageConfig(Struct, frozen=True):
    """Configuration of the live page."""

    ws: Annotated[str, Meta(description="WebSocket URL of the streamer; empty: same host.")]
    oauth: SignInConfig | None = None
