"""Domain types: boards, users, actions, packed scores. No I/O.

Uses only the standard library and msgspec. Invariants: packing is reversible; packed scores sort by
score and then, within a partition, by arrival.
"""

import hashlib
import re
import uuid
import zlib
from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

SCORE_MAX: Final = 2**31 - 1
"""Scores are PostgreSQL INTs: 0…SCORE_MAX."""

SLOT_COUNT: Final = 2**21
"""Arrival slots within one score; score × SLOT_COUNT + slot < 2⁵² is exact in a double."""

WATCHED_TOP: Final = 10
"""Number of rows that viewers get; lua/submit.lua publishes only changes among these (a test
compares)."""

NAME_MAX: Final = 200
"""Longest name of a user, in characters; a constraint of the table (migration 0002)."""

PAGE_MAX: Final = 100
"""Maximum number of rows of one leaderboard read."""

USERS_MAX: Final = 100
"""Maximum number of users of one read of standings."""

AROUND_MAX: Final = 25
"""Maximum number of neighbours on each side of a user's standing."""

BOARDS_MAX: Final = 8
"""Maximum number of boards of one update."""

BULK_MAX: Final = 100
"""Maximum number of updates of one request."""

BATCH_MAX: Final = 64
"""Maximum number of actions of one submit call; bounds how long a script holds Redis."""

POINTS_MAX: Final = 1_000_000
"""Maximum points of one action."""

WINDOW_MIN_S: Final = 10
WINDOW_MAX_S: Final = 31 * 86_400
"""Bounds of the window of a limit, in seconds."""

PACKED_MAX: Final = (SCORE_MAX + 1) * SLOT_COUNT - 1
"""Greatest packed score."""

COUNT_MAX: Final = 2**53 - 1
"""Greatest epoch, seq or count: Lua numbers are doubles, which are exact up to here."""

PARTITIONS_MAX: Final = 256
"""Maximum partitions of a board: each has a flusher task, and reads query all of them."""

SEEN_SECONDS_MAX: Final = 2**31 - 1
SEEN_SHARDS_MAX: Final = 65_536

END: Final = r"$(?!\n)"
"""The end of a pattern: `$` alone also matches before a final newline in Python."""

ACT_KIND: Final = "act"
"""The kind of administrators' acts in the ledger; no update may have it."""

STREAM_ID_PATTERN: Final = rf"^[0-9]{{1,20}}-[0-9]{{1,20}}{END}"
ID_PATTERN: Final = rf"^[A-Za-z0-9._|:@-]{{1,128}}{END}"
BOARD_PATTERN: Final = rf"^(?!\.\.?$)[a-z0-9_.-]{{1,32}}{END}"
"""The names `.` and `..` are not allowed: clients and proxies drop such parts of a path."""

SEASON_PATTERN: Final = rf"^[0-9A-Z-]{{1,32}}{END}"

ID_FORM: Final = "1 to 128 characters of A-Z a-z 0-9 . _ | : @ -"
BOARD_FORM: Final = "1 to 32 characters of a-z 0-9 _ . -, other than . and .."
FORMS: Final = {
    ID_PATTERN: ID_FORM,
    BOARD_PATTERN: BOARD_FORM,
    SEASON_PATTERN: "1 to 32 characters of 0-9 A-Z -",
}
"""What an error says of a text that does not match a pattern."""

UserId = Annotated[
    str,
    Meta(
        pattern=ID_PATTERN,
        min_length=1,
        max_length=128,
        description="The user's id: the `sub` claim of its tokens.",
        examples=["018f6d0e-5f2c-7c3a-9f57-3a1f6f0f9f11", "auth0|64f1"],
    ),
]
ActionId = Annotated[
    str,
    Meta(
        pattern=ID_PATTERN,
        min_length=1,
        max_length=128,
        description="An action of the user; counts exactly once. `kind:unique` selects the points.",
        examples=["win:01J9ZQ4T8B6W3M"],
    ),
]
BoardName = Annotated[
    str,
    Meta(pattern=BOARD_PATTERN, description="A named ranking.", examples=["main"]),
]
SeasonId = Annotated[
    str,
    Meta(
        pattern=SEASON_PATTERN,
        description="A season of a board, by its start.",
        examples=["2026-11-27", "2026-W48", "2026-11", "2026-11-27T0600Z"],
    ),
]
StreamId = Annotated[str, Meta(pattern=STREAM_ID_PATTERN)]
StatedPoints = Annotated[int, Meta(ge=-POINTS_MAX, le=SCORE_MAX)]
"""Points or a value that a request states; the rules of the board restrict it further."""
Count = Annotated[int, Meta(ge=0, le=COUNT_MAX)]
"""An epoch, seq or count in a reply of Redis."""

DEFAULT_BOARD: Final = "main"

BOARDS_KEPT_MAX: Final = 10_000
"""Maximum boards of which a process keeps something in memory, unless it serves all."""

SCOPE_PATTERN: Final = rf"^[A-Za-z0-9._:/-]{{1,64}}{END}"
"""The form of a scope that a kind of action can require."""

_ID = re.compile(ID_PATTERN)
_LAYOUT = re.compile(r"(\d{1,10}):(\d{1,10}):(\d{1,10})(?::(\S{1,250}))?", re.ASCII)
_RULES = re.compile(
    r"([a-z]+):([a-z]+):(\d{1,10}):(\d{1,10}):([a-z]+):([a-z]+)"
    r"(?::((?:daily|weekly|monthly|cron:[!-~]{1,100}))@([!-~]{1,64}))?",
    re.ASCII,
)
_LIMITS = re.compile(r"(\d{1,10}):(\d{1,10}):(\d{1,10})(?::.*)?", re.ASCII)
_SEASON = re.compile(SEASON_PATTERN)
_BOARD = re.compile(BOARD_PATTERN)


def is_identifier(text: str) -> bool:
    """Return whether ``text`` is a valid ``userId`` or ``actionId``."""
    return _ID.match(text) is not None


def is_board_name(text: str) -> bool:
    """Return whether ``text`` is a valid board name."""
    return _BOARD.match(text) is not None


def is_season_id(text: str) -> bool:
    """Return whether ``text`` has the form of a season's id."""
    return _SEASON.match(text) is not None


def require_whole(points: float) -> None:
    """Check that points that are a float are whole and in range: in JSON, 5.0 is a whole number.

    Raises ValueError, which says what to change.
    """
    if not points.is_integer() or not -POINTS_MAX <= points <= SCORE_MAX:
        raise ValueError(f"points must be an integer from {-POINTS_MAX} to {SCORE_MAX}")


def scores_name(board: str, season: str) -> str:
    """Return the name under which the scores of a season are in PostgreSQL's ``scores``.

    It is the board's own name for ``season`` "": a board without seasons. It is never the name of a
    board, which cannot contain ``@``.
    """
    return f"{board}@{season}" if season else board


Operator = Literal["add", "best", "last"]
Order = Literal["highest", "lowest"]
Lowering = Literal["nobody", "trusted", "players"]
PointsFrom = Literal["catalogue", "stated"]


class Rules(Struct, frozen=True):
    """How the actions of a board change its scores. They are fixed when the board is created.

    ``operator``: ``add`` adds an action's points to the score, ``best`` keeps the best of all
    values, ``last`` the latest one. ``order``: which scores are better, and rank first. A score
    stays in ``score_min``…``score_max``; an action that would move it out of there is refused.
    ``lowering``: who may send negative points to a board with ``add``. ``points``: whether an
    action earns the points of its kind in the catalogue, or the caller states them; trusted callers
    may always state them. ``season``: empty for none, ``daily``, ``weekly``, ``monthly`` or
    ``cron:`` and an expression; when it ends, the scores begin anew (scoreboard.seasons).
    ``time_zone`` is its IANA zone.
    """

    operator: Operator = "add"
    order: Order = "highest"
    score_min: int = 0
    score_max: int = SCORE_MAX
    lowering: Lowering = "nobody"
    points: PointsFrom = "catalogue"
    season: str = ""
    time_zone: str = ""

    def __str__(self) -> str:
        """Return the fields in order, joined by colons; of a board with seasons ``season@zone``.

        Spaces in a season become underscores: a layout is one word.
        """
        *fields, season, zone = msgspec.structs.astuple(self)
        text = ":".join(map(str, fields))
        return f"{text}:{season.replace(' ', '_')}@{zone}" if season else text

    @classmethod
    def parse(cls, text: str) -> "Rules":
        """Parse the form of ``__str__``.

        Raises ValueError for any other text and for values beyond the limits.
        """
        found = _RULES.fullmatch(text)
        if found is None:
            raise ValueError("rules are operator:order:min:max:lowering:points[:season@zone]")
        operator, order, low, high, lowering, points, season, zone = found.groups()
        season = (season or "").replace("_", " ")
        try:
            values = (operator, order, int(low), int(high), lowering, points, season, zone or "")
            rules = msgspec.convert(dict(zip(cls.__struct_fields__, values, strict=True)), cls)
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from None
        if not rules.score_min < rules.score_max <= SCORE_MAX:
            raise ValueError("rules exceed their limits")
        return rules

    @property
    def takes_values(self) -> bool:
        """Return whether an action states the new score instead of a difference."""
        return self.operator != "add"

    @property
    def act_min(self) -> int:
        """Return the lowest score that an administrator's act may leave.

        Without any value a user has 0; that must not become the best score of a board.
        """
        is_best_without_value = self.takes_values and self.order == "lowest"
        return max(self.score_min, 1) if is_best_without_value else self.score_min

    def pack(self, score: int, slot: int) -> int:
        """Combine score and arrival slot into the number that Redis sorts by, best first."""
        return pack(score if self.order == "highest" else SCORE_MAX - score, slot)

    def unpack_score(self, packed: int) -> int:
        """Return the score of a packed score."""
        level = unpack_score(packed)
        return level if self.order == "highest" else SCORE_MAX - level

    def lead(self, ahead: int, score: int) -> int:
        """Return by how many points a score is better than another one; negative if it is worse."""
        return ahead - score if self.order == "highest" else score - ahead


DEFAULT_RULES: Final = Rules()


class Layout(Struct, frozen=True):
    """Partitions, dedup window and rules of a board. Only a reseed may change the first two.

    ``seen_seconds`` is the length of a generation of the dedup window; an action is remembered for
    one to two generations. ``seen_shards`` is the number of hashes of one generation.
    """

    partitions: int = 1
    seen_seconds: int = 43_200
    seen_shards: int = 64
    rules: Rules = DEFAULT_RULES

    def __str__(self) -> str:
        """Return the form that the scripts compare: ``partitions:seconds:shards[:rules]``.

        The rules are omitted if they are the default ones, as versions before them wrote it.
        """
        text = f"{self.partitions}:{self.seen_seconds}:{self.seen_shards}"
        return text if self.rules == DEFAULT_RULES else f"{text}:{self.rules}"

    @classmethod
    def parse(cls, text: str) -> "Layout":
        """Parse the form of ``__str__``.

        Raises ValueError for any other text and for values beyond the limits.
        """
        found = _LAYOUT.fullmatch(text)
        if found is None:
            raise ValueError("a layout is partitions:seconds:shards[:rules]")
        partitions, seconds, shards, rules = found.groups()
        layout = cls(
            int(partitions),
            int(seconds),
            int(shards),
            DEFAULT_RULES if rules is None else Rules.parse(rules),
        )
        if not (
            1 <= layout.partitions <= PARTITIONS_MAX
            and 1 <= layout.seen_seconds <= SEEN_SECONDS_MAX
            and 1 <= layout.seen_shards <= SEEN_SHARDS_MAX
        ):
            raise ValueError("a layout exceeds its limits")
        return layout


class Limits(Struct, frozen=True):
    """How much better the actions of a user may make a score; 0 for no limit.

    ``per_action`` is the most that one action may gain, ``per_window`` the most that the actions of
    a user may gain together in a window of ``window_s`` seconds; windows begin at multiples of
    their length since 1970, by Redis's clock. On a board with the operator ``best`` or ``last``
    there is only the former. An action that exceeds a limit is held and changes no score.
    """

    per_action: int = 0
    per_window: int = 0
    window_s: int = 0

    def __str__(self) -> str:
        """Return the form that the scripts read; empty without limits."""
        return ":".join(map(str, msgspec.structs.astuple(self))) if self != NO_LIMITS else ""

    @classmethod
    def parse(cls, text: str) -> "Limits":
        """Parse the form of ``__str__``; parts that a later version adds are ignored.

        Raises ValueError for any other text and for values beyond what ``check_limits`` allows.
        """
        if not text:
            return NO_LIMITS
        found = _LIMITS.fullmatch(text)
        if found is None:
            raise ValueError("limits are per_action:per_window:window_s")
        limits = cls(*map(int, found.groups()))
        check_limits(limits, DEFAULT_RULES)
        return limits


NO_LIMITS: Final = Limits()


def check_limits(limits: Limits, rules: Rules) -> None:
    """Check that limits fit together, and to the rules of their board.

    Raises ValueError, which says what to change.
    """
    if not 0 <= limits.per_action <= SCORE_MAX or not 0 <= limits.per_window <= SCORE_MAX:
        raise ValueError(f"points of a limit are 1 to {SCORE_MAX}")
    if bool(limits.per_window) != bool(limits.window_s):
        raise ValueError("points per window and the length of the window are set together")
    if limits.window_s and not WINDOW_MIN_S <= limits.window_s <= WINDOW_MAX_S:
        raise ValueError(f"a window has {WINDOW_MIN_S} to {WINDOW_MAX_S} seconds")
    if limits.per_window and rules.takes_values:
        raise ValueError(
            f"points per window are for boards with operator add; a board with {rules.operator} "
            "takes values"
        )


BoardState = Literal["open", "archived"]

LimitKind = Literal["action", "window"]
"""Which limit an action exceeded."""


class Board(Struct, frozen=True):
    """A named ranking and its properties. An archived board can be read and accepts no actions."""

    name: str = DEFAULT_BOARD
    layout: Layout = Layout()
    is_public: bool = True
    state: BoardState = "open"
    limits: Limits = NO_LIMITS


class ActionKind(Struct, frozen=True):
    """A kind of action in the catalogue, as an update needs it.

    ``points`` is 0 for a disabled kind. ``scope``: the caller's token must have it; empty: none.
    ``boards``: where the action counts if the request names no board; empty: the default board.
    ``needs_proof``: the action counts only with a proof of a game server.
    """

    points: int
    scope: str = ""
    boards: tuple[str, ...] = ()
    needs_proof: bool = False

    @property
    def is_restricted(self) -> bool:
        """Whether it has more than points."""
        return bool(self.scope or self.boards or self.needs_proof)


class Partition(Struct, frozen=True):
    """A slice of a board's users: the unit of atomicity, of the stream and of flushing."""

    board: str
    number: int = 0

    def __str__(self) -> str:
        return f"{self.board}:{self.number}"


class Action(Struct, frozen=True):
    """A user's action, ready to be applied.

    ``stated`` is true if the caller supplied the points: a replay with other points is then a
    conflict. Points from the catalogue may change between two attempts, so a replay without stated
    points always gets the first answer (docs/decisions/0004). ``delta`` is the value on a board
    with the operator ``best`` or ``last``. ``rules`` are those by which the caller chose it; a
    board with other rules does not apply the action.
    """

    user_id: str
    action_id: str
    delta: int
    stated: bool = False
    request_id: str = ""
    rules: Rules = DEFAULT_RULES
    season: str = ""
    """The id of the season in which the action may count; empty: the current one."""


class Receipt(Struct, frozen=True):
    """The permanent answer to an action: the user's score after it and its place in the stream.

    ``committed``: PostgreSQL was known to have this change when Redis answered. ``held``: the
    action exceeds a limit of the board, and ``score`` is that without it.
    """

    score: int
    seq: int
    replayed: bool
    committed: bool = False
    held: bool = False


KnownName = Annotated[
    str, Meta(max_length=NAME_MAX, description="The user's name, where it is known.")
]


class Row(Struct, frozen=True, rename="camel"):
    """One row of a ranking."""

    rank: int
    user_id: str
    score: int
    name: KnownName | UnsetType = UNSET


class Window(Struct, frozen=True):
    """Part of a ranking; each partition is read at one moment.

    Equal scores of one partition are ordered by arrival. Those of different partitions are ordered
    by packed score and partition number, which is the same for every reader but not by time
    (docs/decisions/0044). With several partitions ``epoch`` and ``seq`` are sums, which grow when
    one of them does; ``positions`` has (epoch, seq) of each, because a sum can hide a decrease.
    ``changed_ms`` is when Redis accepted the last change of the watched rows (0: not known),
    ``read_ms`` when it was read, both by Redis's clock.
    """

    epoch: int
    seq: int
    total: int
    rows: tuple[Row, ...]
    positions: tuple[tuple[int, int], ...] = ()
    changed_ms: int = 0
    read_ms: int = 0
    season: str = ""
    """The season of the rows as id:start:end (scoreboard.seasons); empty for none."""


class Span(Struct, frozen=True):
    """Which rows of a ranking a viewer sees: ``rows`` of them, after the first ``offset``."""

    offset: int = 0
    rows: int = WATCHED_TOP

    @property
    def end(self) -> int:
        """The rank of the last row."""
        return self.offset + self.rows


TOP: Final = Span()
"""The rows of a viewer that asks for no others."""


class Standing(Struct, frozen=True):
    """A user's rank and score, with the rows around it (its own included) on request."""

    user_id: str
    rank: int
    score: int
    total: int
    epoch: int
    seq: int
    neighbours: tuple[Row, ...] = ()


class Place(Struct, frozen=True):
    """A user's rank and score, the rows beside it, and its distance to better ranks.

    ``rank`` and ``score`` are None for a user without a score. ``to_next`` is the distance to the
    row directly ahead, None at rank 1; ``to_top`` that to the last of the watched rows, None within
    them.
    """

    epoch: int
    seq: int
    total: int
    rank: int | None = None
    score: int | None = None
    to_next: int | None = None
    to_top: int | None = None
    above: tuple[Row, ...] = ()
    below: tuple[Row, ...] = ()


class Standings(Struct, frozen=True):
    """Ranks and scores of some users of a board, best first; users without a score are left out."""

    rows: tuple[Row, ...]
    total: int
    epoch: int
    seq: int


class ScoreRank(Struct, frozen=True):
    """The rank that a user who reached a score now would get, and how many users have it."""

    rank: int
    equals: int
    total: int
    epoch: int
    seq: int


def pack(score: int, slot: int) -> int:
    """Combine score and arrival slot; for a board on which the highest score is the best."""
    return score * SLOT_COUNT + slot


def unpack_score(packed: int) -> int:
    """Return the score of a packed score of such a board; ``Rules`` has both for any board."""
    return packed // SLOT_COUNT


def partition_of(user_id: str, partitions: int) -> int:
    """Return the partition number of a user: crc32 of the id modulo ``partitions``."""
    return zlib.crc32(user_id.encode()) % partitions if partitions > 1 else 0


def kind_of(action_id: str) -> str:
    """Return the kind of an action: the part before the first colon, or an empty string."""
    kind, colon, _ = action_id.partition(":")
    return kind if colon else ""


def digest_of(board: str, user_id: str, action_id: str) -> bytes:
    """Return the 16-byte key of an action in the dedup window."""
    named = f"{board}\0{user_id}\0{action_id}".encode()
    return hashlib.blake2b(named, digest_size=16).digest()


def shard_of(digest: bytes, shards: int) -> int:
    """Return the shard of the dedup window for a digest."""
    return int.from_bytes(digest[:4], "big") % shards


def user_uuid(external_id: str) -> uuid.UUID:
    """Return the preferred ``users.id``: the id itself if it is a canonical UUID, else a UUIDv5.

    Two users can prefer the same UUID, so this is never the key of a lookup: a user's row is found
    by ``external_id``, and its id may be another one (docs/decisions/0045). Upper case and
    ``urn:uuid:`` are not canonical.
    """
    try:
        parsed = uuid.UUID(external_id)
    except ValueError:
        parsed = None
    if parsed is not None and str(parsed) == external_id:
        return parsed
    return uuid.uuid5(uuid.NAMESPACE_URL, f"urn:scoreboard:user:{external_id}")
