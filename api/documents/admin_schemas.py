"""Requests and replies of ``/api/admin`` as types, for parsing, encoding and the documents."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal

from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import asdict

from api.documents.forms import REASON_PATTERN, name_in_json
from api.documents.schemas import BoardReply
from scoreboard.events import BIGINT_MAX
from scoreboard.ledger.acts import ACT_ID_PATTERN, ActKind, ActState
from scoreboard.ledger.held import HeldState
from scoreboard.model import (
    SCORE_MAX,
    SEEN_SECONDS_MAX,
    ActionId,
    BoardName,
    BoardState,
    LimitKind,
    Lowering,
    Operator,
    Order,
    PointsFrom,
    SeasonId,
    UserId,
)
from scoreboard.moderation.plans import (
    BanChange,
    Correction,
    Release,
    Request,
    Undo,
    Void,
    WindowVoid,
)

ActId = Annotated[str, Meta(pattern=ACT_ID_PATTERN, description="16 hexadecimal digits.")]
Reason = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=500,
        pattern=REASON_PATTERN,
        description="Why; it is kept with the act.",
    ),
]
Moment = Annotated[datetime, Meta(tz=True)]

_FIELDS: Final = {
    "correct": {"delta"},
    "void": {"action_id"},
    "void window": {"since", "until"},
    "undo": {"act"},
    "release": {"held"},
    "ban": set[str](),
    "unban": set[str](),
}
"""The fields that each kind of act needs, besides board and user; it takes no others."""

_WHO: Final = {"undo": set[str](), "release": {"board"}}
"""Board and user, where a kind does not need both."""


class ActPlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What an act is to do.

    Every kind needs `board` and `userId`, but for `undo` and `release`.
    """

    kind: Annotated[
        ActKind,
        Meta(
            description="`correct` adds `delta` to the score. `void` takes back what the action "
            "`actionId` counted, `void window` what all actions from `since` until before `until` "
            "counted. `ban` removes the user from the board and refuses new actions, `unban` ends "
            "that. `release` lets the action `held` of `board` count, which exceeded a limit. "
            "`undo` does the opposite of `act`, and needs nothing else."
        ),
    ]
    board: BoardName | UnsetType = UNSET
    user_id: UserId | UnsetType = UNSET
    delta: Annotated[int, Meta(ge=-SCORE_MAX, le=SCORE_MAX)] | UnsetType = UNSET
    action_id: ActionId | UnsetType = UNSET
    since: Moment | UnsetType = UNSET
    until: Moment | UnsetType = UNSET
    act: ActId | UnsetType = UNSET
    held: Annotated[int, Meta(ge=1, le=BIGINT_MAX)] | UnsetType = UNSET
    in_current_season: Annotated[
        bool,
        Meta(
            description="With `release`: an action that was held in an earlier season counts in "
            "the current one. Without it, it is refused."
        ),
    ] = False

    def __post_init__(self) -> None:
        """Check what the schema cannot express."""
        wanted = _FIELDS[self.kind] | _WHO.get(self.kind, {"board", "user_id"})
        optional = {"board", "user_id", "delta", "action_id", "since", "until", "act", "held"}
        given = {name for name in optional if getattr(self, name) is not UNSET}
        if given != wanted:
            names = ", ".join(sorted(map(name_in_json, wanted)))
            raise ValueError(f"an act of the kind {self.kind} needs {names} and no other field")
        if self.in_current_season and self.kind != "release":
            raise ValueError("inCurrentSeason is for an act of the kind release")
        if self.delta == 0:
            raise ValueError("delta must not be 0")
        if (
            isinstance(self.since, datetime)
            and isinstance(self.until, datetime)
            and self.since >= self.until
        ):
            raise ValueError("since must be before until")

    @property
    def request(self) -> Request:
        """The act as the moderation takes it."""
        found: dict[str, Any] = {k: v for k, v in asdict(self).items() if v is not UNSET}
        match self.kind:
            case "correct":
                return Correction(found["user_id"], found["delta"])
            case "void":
                return Void(found["user_id"], found["action_id"])
            case "void window":
                return WindowVoid(found["user_id"], found["since"], found["until"])
            case "undo":
                return Undo(found["act"])
            case "release":
                return Release(found["held"], self.in_current_season)
            case kind:
                return BanChange(found["user_id"], kind)


class ActRequest(ActPlan, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """An act to perform."""

    id: Annotated[
        str,
        Meta(
            pattern=ACT_ID_PATTERN,
            description="The act's id, 16 random hexadecimal digits that the caller chooses. If "
            "there is no response, send the request again with the same id: the act is done once.",
        ),
    ]
    reason: Reason


class Place(Struct, frozen=True):
    """A user's score and rank; null: none."""

    score: int | None
    rank: int | None


class PlacedRow(Struct, frozen=True, rename="camel"):
    """A row of the top of a board."""

    rank: int
    user_id: UserId
    score: int


class PreviewReply(Struct, frozen=True, rename="camel"):
    """What an act would do now."""

    board: BoardName
    user_id: UserId
    kind: ActKind
    delta: int
    actions: Annotated[int, Meta(description="The number of actions that it would void.")]
    before: Place
    after: Place
    top_before: tuple[PlacedRow, ...]
    top_after: tuple[PlacedRow, ...]


class ActReply(Struct, frozen=True, rename="camel"):
    """An act that was applied."""

    act: ActId
    board: BoardName
    user_id: UserId
    kind: ActKind
    delta: int
    score: Annotated[
        int | None, Meta(description="The score after it; null for bans, and for repeats.")
    ]
    committed: Annotated[bool, Meta(description="Whether PostgreSQL has it.")]


class ActRow(Struct, frozen=True, rename="camel"):
    """A recorded act."""

    id: ActId
    at: datetime
    board: BoardName
    user_id: UserId
    kind: ActKind
    delta: int
    actor: str
    reason: str
    detail: dict[str, Any]
    undoes: ActId | None
    undone_by: ActId | None
    state: Annotated[
        ActState,
        Meta(description="`pending`: recorded and not in the ledger yet. `refused`: it would have "
             "moved the score out of its bounds, and changed nothing."),
    ]  # fmt: skip


class ActsReply(Struct, frozen=True):
    """A page of acts, latest first."""

    acts: tuple[ActRow, ...]
    next: Annotated[ActId | None, Meta(description="`before` of the next page; null on the last.")]


class HeldRow(Struct, frozen=True, rename="camel"):
    """An action that exceeded a limit of its board."""

    id: int
    board: BoardName
    user_id: UserId
    action_id: ActionId
    delta: Annotated[int, Meta(description="What it would have added when the score was `score`.")]
    score: int
    limit: Annotated[LimitKind, Meta(description="The limit that it exceeded.")]
    occurred_at: datetime
    state: Annotated[HeldState, Meta(description="`pending`: it is being released.")]
    act: Annotated[ActId | None, Meta(description="The act that released it.")]
    voided_by: str | None
    voided_reason: str | None
    season: Annotated[
        SeasonId | None,
        Meta(description="The season in which it was held; null on a board without seasons."),
    ]


class HeldReply(Struct, frozen=True):
    """A page of held actions, oldest first."""

    held: tuple[HeldRow, ...]
    next: Annotated[int | None, Meta(description="`after` of the next page; null on the last.")]


class HeldVoid(Struct, frozen=True, forbid_unknown_fields=True):
    """Why a held action is voided."""

    reason: Reason


class AuditReplyRow(Struct, frozen=True):
    """A row of the audit log."""

    number: int
    at: datetime
    actor: str
    action: str
    board: str | None
    detail: dict[str, Any]


class AuditReply(Struct, frozen=True):
    """A page of the audit log, latest first."""

    rows: tuple[AuditReplyRow, ...]
    next: Annotated[int | None, Meta(description="`before` of the next page; null on the last.")]


class FoundUser(Struct, frozen=True, rename="camel"):
    """A user that a search found."""

    user_id: UserId
    name: str | None


class UsersReply(Struct, frozen=True):
    """The users that a search found."""

    users: tuple[FoundUser, ...]


class UserBoard(Struct, frozen=True, rename="camel"):
    """A user on a board."""

    board: BoardName
    score: Annotated[int | None, Meta(description="Redis's, or of a banned user PostgreSQL's.")]
    rank: int | None
    banned_by: Annotated[ActId | None, Meta(description="The act that bans the user here.")]


class UserSeason(Struct, frozen=True):
    """A user's score in an ended season, and its final rank."""

    board: BoardName
    season: SeasonId
    score: int
    rank: Annotated[int | None, Meta(description="Null: the user was banned at the end.")]


class UserReply(Struct, frozen=True, rename="camel"):
    """A user, the boards on which it has a score or is banned, and its ended seasons."""

    user_id: UserId
    name: str | None
    boards: tuple[UserBoard, ...]
    seasons: Annotated[tuple[UserSeason, ...], Meta(description="Latest first.")]


class BoardLimits(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """How much the actions of a user may gain; what exceeds it is held. 0: no limit."""

    points_per_action: Annotated[int, Meta(ge=0, le=SCORE_MAX)]
    points_per_window: Annotated[int, Meta(ge=0, le=SCORE_MAX)]
    window_s: Annotated[
        int, Meta(ge=0, le=SCORE_MAX, description="Length of the window in seconds.")
    ]

    def __post_init__(self) -> None:
        """Check what the schema cannot express."""
        if bool(self.points_per_window) != bool(self.window_s):
            raise ValueError("set pointsPerWindow and windowS together, or both to 0")


class AdminBoard(BoardReply, frozen=True, rename="camel"):
    """A board, its rules and its size."""

    partitions: int
    users: Annotated[
        int | None, Meta(description="Users on the board; null while it is not loaded.")
    ]
    limits: BoardLimits
    seen_seconds: Annotated[
        int,
        Meta(
            description="For at least how long Redis remembers an action, so that it counts once."
        ),
    ]


class AdminBoardsReply(Struct, frozen=True):
    """A page of boards, by name."""

    boards: tuple[AdminBoard, ...]
    next: Annotated[str | None, Meta(description="`after` of the next page; null on the last.")]


class NewBoardRules(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The rules of a new board; they can never be changed."""

    operator: Operator = "add"
    order: Order = "highest"
    min: Annotated[int, Meta(ge=0, le=SCORE_MAX)] = 0
    max: Annotated[int, Meta(ge=0, le=SCORE_MAX)] = SCORE_MAX
    lowering: Lowering = "nobody"
    points: PointsFrom = "catalogue"
    season: Annotated[
        str,
        Meta(
            max_length=100,
            description="`daily`, `weekly`, `monthly`, or `cron:` and an expression of five "
            "fields; empty for a board without seasons.",
        ),
    ] = ""
    time_zone: Annotated[
        str, Meta(max_length=64, description="The IANA time zone of the seasons; UTC if empty.")
    ] = ""


class NewBoard(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A board to make. It has one partition; `scoreboard board create` can make more."""

    name: BoardName
    public: bool = True
    rules: NewBoardRules = NewBoardRules()
    limits: Annotated[
        BoardLimits | UnsetType, Meta(description="None if omitted; they can be changed.")
    ] = UNSET
    seen_seconds: Annotated[
        Annotated[int, Meta(ge=1, le=SEEN_SECONDS_MAX)] | UnsetType,
        Meta(
            description="For at least how long Redis remembers an action, so that it counts once; "
            "12 hours if omitted. PostgreSQL counts each action once, also later."
        ),
    ] = UNSET


class BoardChange(Struct, frozen=True, forbid_unknown_fields=True):
    """What to change of a board."""

    public: bool | UnsetType = UNSET
    state: BoardState | UnsetType = UNSET
    limits: Annotated[
        BoardLimits | UnsetType, Meta(description="They replace all limits of the board.")
    ] = UNSET

    def __post_init__(self) -> None:
        """Check what the schema cannot express."""
        if self.public is self.state is self.limits is UNSET:
            raise ValueError("name public, state or limits")


class BoardHealth(Struct, frozen=True, rename="camel"):
    """Whether a board accepts actions, and what of it waits for PostgreSQL."""

    board: BoardName
    open: Annotated[bool, Meta(description="Every partition accepts actions.")]
    uncommitted: int
    oldest_age_s: Annotated[
        float | None, Meta(description="Age of the oldest action that waits; null: none waits.")
    ]


class ProcessHealth(Struct, frozen=True, rename="camel"):
    """A process of a service, or its workers together, as its metrics port says."""

    service: Literal["api", "streamer", "flusher"]
    address: Annotated[str, Meta(description="Host and port of its metrics.")]
    state: Annotated[
        Literal["ready", "not ready", "unknown"], Meta(description="`unknown`: no usable answer.")
    ]
    version: str | None
    viewers: Annotated[
        int | None,
        Meta(description="Open WebSockets and event streams; null: unknown, or a flusher."),
    ]
    refusals: Annotated[
        dict[str, int] | None,
        Meta(
            description="Refused updates, tokens, calls of Redis and viewers since it started, by "
            "what was refused and why, such as `update busy`; null: unknown."
        ),
    ]


class StatusReply(Struct, frozen=True, rename="camel"):
    """Default boards, closed ones, those on which actions wait, and what waits for a decision."""

    boards: tuple[BoardHealth, ...]
    dead_letters: int
    pending_acts: int
    held: Annotated[int, Meta(description="Held actions that wait for a decision, up to 1000.")]
    processes: Annotated[
        tuple[ProcessHealth, ...],
        Meta(description="Those of `SCOREBOARD_SERVICES`, at most 100, read within a second."),
    ]
