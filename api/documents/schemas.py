"""Requests and replies of the API as types: what is parsed, sent and documented."""

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from scoreboard.model import POINTS_MAX, ActionId, Points, UserId, is_identifier


class UpdateRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """One action of one user. The same `actionId` counts once, ever, however often it is sent."""

    user_id: UserId
    action_id: ActionId
    points: Annotated[
        Points | float | UnsetType,
        Meta(description="Only with `update:score:any`; else the catalogue of actions decides."),
    ] = UNSET

    def __post_init__(self) -> None:
        """Refuse what the documented pattern lets through: its ``$`` also fits before a newline.

        And what is no whole number of points; 5.0 is one, to JSON and to its schemas.
        """
        if not (is_identifier(self.user_id) and is_identifier(self.action_id)):
            raise ValueError("userId and actionId hold no line break")
        if isinstance(self.points, float) and (
            not self.points.is_integer() or not 1 <= self.points <= POINTS_MAX
        ):
            raise ValueError(f"points is a whole number from 1 to {POINTS_MAX}")

    @property
    def stated_points(self) -> int | None:
        """The points as a whole number; None where they were left out."""
        return None if self.points is UNSET else int(self.points)


class UpdateReply(Struct, frozen=True, rename="camel"):
    """The lasting answer to an action: a repeat gets the same `newScore`."""

    success: Annotated[bool, Meta(description="Always true; everything else is a problem.")]
    new_score: Annotated[int, Meta(ge=0, description="The user's score after this action.")]
    replayed: Annotated[bool, Meta(description="True where the action had counted before.")]


class RankedUser(Struct, frozen=True, rename="camel", omit_defaults=True):
    """One row of a ranking; ranks are unique, and who reached a score first stays ahead.

    On a board of several partitions that holds within each; equals of different ones have one
    order for every reader, not by time.
    """

    rank: Annotated[int, Meta(ge=1)]
    user_id: UserId
    score: Annotated[int, Meta(ge=0)]
    name: Annotated[str | UnsetType, Meta(description="With `names=true`, where known.")] = UNSET


class LeaderboardReply(Struct, frozen=True):
    """A window of the ranking, of one moment within each partition of the board."""

    leaderboard: tuple[RankedUser, ...]
    total: Annotated[int, Meta(ge=0, description="Users on the board.")]
    epoch: Annotated[int, Meta(description="The board's life; rises when history was mended.")]
    seq: Annotated[int, Meta(description="Changes applied in this epoch; never falls within it.")]


class StandingReply(Struct, frozen=True, rename="camel"):
    """One user's place, with the rows around it where asked for."""

    user_id: UserId
    rank: Annotated[int, Meta(ge=1)]
    score: Annotated[int, Meta(ge=0)]
    total: Annotated[int, Meta(ge=0)]
    epoch: int
    seq: int
    neighbours: Annotated[
        tuple[RankedUser, ...],
        Meta(description="`around` rows to each side, the user's own among them; more on one side "
             "where the other ends."),
    ]  # fmt: skip


class Alive(Struct, frozen=True):
    """The process answers."""

    status: str = "alive"


class Check(Struct, frozen=True, omit_defaults=True):
    """How one dependency stands."""

    state: str
    detail: str = ""


class Readiness(Struct, frozen=True):
    """Whether this process should get requests, and how each dependency stands."""

    status: Annotated[str, Meta(description="`ready`, `not ready` or `draining`.")]
    checks: dict[str, Check]


class SignInConfig(Struct, frozen=True, rename="camel"):
    """How the live page signs players in (web/sign-in.js)."""

    issuer: str
    client_id: str
    audience: str


class PageConfig(Struct, frozen=True):
    """What the live page must know."""

    ws: Annotated[str, Meta(description="Address of the live updates; empty: this host.")]
    boards: tuple[str, ...]
    oauth: SignInConfig | None = None
