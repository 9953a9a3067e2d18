"""The newest accepted state of a board in one process. No I/O.

Invariants: the state never goes back. A read older than the last accepted one (a failover lost
writes, a backup was restored) is rejected until the board's epoch rises, which only an operator's
repair does. Otherwise viewers would ignore all updates until ``seq`` had caught up, or take an
older epoch for a new one.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from scoreboard.broadcast.messages import Leaderboard, StaleReason, Status
from scoreboard.model import TOP, Row, Span, Window

NO_NAMES: Final[Mapping[str, str]] = {}

Positions = tuple[tuple[int, int], ...]
"""The (epoch, seq) of each partition."""


class ReadResult(Enum):
    """How a read compares with the last accepted one."""

    CHANGED = "changed"
    UNCHANGED = "unchanged"
    REWOUND = "rewound"


class BoardState:
    """The newest accepted state of one board, or of one window of it."""

    __slots__ = (
        "_changed_ms",
        "_positions",
        "_rows",
        "accepted_at_s",
        "away",
        "board",
        "failure",
        "is_public",
        "message",
        "span",
        "stale_reason",
        "user_ids",
    )

    def __init__(self, board: str, span: Span = TOP) -> None:
        self.board = board
        self.span = span
        self.message: Leaderboard | None = None
        """The message that viewers get; None until the first successful read."""
        self.is_public = False
        self.stale_reason: StaleReason | None = None
        """Why the board may be outdated, as sent to viewers; None while it is live."""
        self.away: tuple[int, ...] = ()
        """Partitions whose server is unreachable, of a stale board that others still have."""
        self.failure = ""
        """Why the last read failed; empty after a successful one."""
        self.accepted_at_s = 0.0
        """When Redis accepted the newest change of ``message`` (loop time); 0 if not known."""
        self.user_ids: frozenset[str] = frozenset()
        """The users of ``message``."""
        self._rows: tuple[Row, ...] = ()
        """The rows of ``message`` without names."""
        self._changed_ms: int | None = None
        self._positions: Positions = ()

    @property
    def status(self) -> Status:
        """The message that tells viewers whether the board is live."""
        if self.stale_reason is None:
            return Status("live", board=self.board)
        return Status("stale", self.stale_reason, self.away or UNSET, self.board)

    @property
    def why_stale(self) -> str | None:
        """Return the reason with the error behind it, for operators; None while it is live."""
        if self.stale_reason is None:
            return None
        return f"{self.stale_reason}: {self.failure}" if self.failure else self.stale_reason

    def apply(self, window: Window, at_ms: int, names: Mapping[str, str] = NO_NAMES) -> ReadResult:
        """Accept a read, unless it is older than the last accepted one.

        ``names`` are those known now, by user id; they do not count as a change (``rename``).

        The same rows with a higher ``seq`` are UNCHANGED: most actions do not change the top. A new
        epoch is always CHANGED, because viewers compare ``seq`` within an epoch.
        """
        positions = window.positions or ((window.epoch, window.seq),)
        if is_older(positions, self._positions):
            return ReadResult.REWOUND
        self._positions = positions
        held = self.message
        season, ends_at = _season_of(window)
        if (
            held is not None
            and held.epoch == window.epoch
            and self._rows == window.rows
            and held.season == season
        ):
            return ReadResult.UNCHANGED
        self._rows = window.rows
        self.user_ids = frozenset(row.user_id for row in window.rows)
        offset, rows = (UNSET, UNSET) if self.span == TOP else (self.span.offset, self.span.rows)
        self.message = Leaderboard(
            self.board,
            window.epoch,
            window.seq,
            at_ms,
            with_names(window.rows, names),
            season,
            ends_at,
            offset=offset,
            rows=rows,
        )
        return ReadResult.CHANGED

    def rename(self, names: Mapping[str, str]) -> bool:
        """Build the message again with the names known now; return whether it differs.

        Its position and its time stay: it is the same board.
        """
        held = self.message
        if held is None:
            return False
        rows = with_names(self._rows, names)
        if rows == held.leaderboard:
            return False
        self.message = msgspec.structs.replace(held, leaderboard=rows)
        return True

    @property
    def names(self) -> Mapping[str, str]:
        """The names that ``message`` shows, by user id."""
        rows = self.message.leaderboard if self.message is not None else ()
        return {row.user_id: row.name for row in rows if row.name is not UNSET}

    def note_times(self, window: Window, asked_at_s: float) -> None:
        """Set ``accepted_at_s`` from an accepted read, requested at ``asked_at_s`` (loop time).

        Redis's clock is only compared with itself. The time of a change is not known at the first
        read, whose change may be old, after a reseed, and if the time has not moved: a process of
        an older version does not write it.
        """
        is_newer = self._changed_ms is not None and window.changed_ms > self._changed_ms
        age_s = max(0, window.read_ms - window.changed_ms) / 1000
        self.accepted_at_s = asked_at_s - age_s if is_newer else 0.0
        self._changed_ms = window.changed_ms


def is_older(positions: Positions, than: Positions) -> bool:
    """Return whether a read is older than another one; ``than`` is empty if there is none.

    A position is the (epoch, seq) of a partition.
    """
    if len(positions) != len(than):
        # The number of partitions changed: only the sums of the epochs are comparable.
        epochs = sum(epoch for epoch, _ in positions)
        return bool(than) and epochs <= sum(epoch for epoch, _ in than)
    return any(new < old for new, old in zip(positions, than, strict=True))


def with_names(rows: tuple[Row, ...], names: Mapping[str, str]) -> tuple[Row, ...]:
    """Return rows with the names of their users, where they are in ``names``."""
    if not names:
        return rows
    return tuple(
        Row(row.rank, row.user_id, row.score, names.get(row.user_id, UNSET)) for row in rows
    )


def _season_of(window: Window) -> tuple[str | UnsetType, int | UnsetType]:
    """Return the id of a season, and when it ends in ms since 1970."""
    season, _, span = window.season.partition(":")
    end_s = span.partition(":")[2]
    return season or UNSET, int(end_s) * 1000 if end_s.isdecimal() else UNSET
