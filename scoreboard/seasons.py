"""Seasons: when they begin and end. No clock, no I/O besides the time zones of the installation.

A season is named by its start: ``2026-11-27`` (daily), ``2026-W48`` (weekly, by ISO 8601, from
Monday), ``2026-11`` (monthly), each at midnight of its time zone; ``2026-11-27T0600Z`` (cron, in
UTC). Invariant: every moment is in exactly one season, also where clocks are set forward or back.
"""

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Final, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from cronsim import CronSim, CronSimError
from msgspec import Struct

from scoreboard.errors import Invalid
from scoreboard.model import END, SEASON_PATTERN, Rules

CRON: Final = "cron:"
PERIODS: Final = ("daily", "weekly", "monthly")

SEASON_BYTES_MAX: Final = 100
"""Longest ``season`` of rules."""

_NO_ZONES: Final = {"localtime", "Factory"}
"""Files of the installation that are no time zones; the first is that of the machine."""

_ID: Final = SEASON_PATTERN.removeprefix("^").removesuffix(END)
_TEXT: Final = re.compile(rf"({_ID}):(\d{{1,12}}):(\d{{1,12}})", re.ASCII)
_EXPRESSION: Final = re.compile(r"[0-9A-Za-z*,/#-]+(?: [0-9A-Za-z*,/#-]+){4}", re.ASCII)


class Season(Struct, frozen=True):
    """A season: its id, its start, and its end, which is outside of it (s since 1970)."""

    id: str
    start_s: int
    end_s: int

    def __str__(self) -> str:
        """Return ``id:start:end``, as Redis and the stream have it."""
        return f"{self.id}:{self.start_s}:{self.end_s}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the form of ``__str__``.

        Raises ValueError.
        """
        found = _TEXT.fullmatch(text)
        if found is None or int(found[2]) >= int(found[3]):
            raise ValueError("a season is id:start:end")
        return cls(found[1], int(found[2]), int(found[3]))


def season_at(rules: Rules, now_s: float) -> Season:
    """Return the season of a board in which a moment (s since 1970) is.

    Raises ValueError if the rules have no season, or one that cannot be computed.
    """
    try:
        zone = ZoneInfo(rules.time_zone)
    except (ZoneInfoNotFoundError, OSError) as error:
        raise ValueError(f"the time zone {rules.time_zone} is not known") from error
    now = datetime.fromtimestamp(int(now_s), UTC).astimezone(zone)
    if rules.season.startswith(CRON):
        return _cron_season(rules.season.removeprefix(CRON), now)
    today = now.date()
    match rules.season:
        case "daily":
            name, first, following = today.isoformat(), today, today + timedelta(days=1)
        case "weekly":
            year, week, weekday = today.isocalendar()
            first = today - timedelta(days=weekday - 1)
            name, following = f"{year:04}-W{week:02}", first + timedelta(days=7)
        case "monthly":
            first = today.replace(day=1)
            name, following = f"{today:%Y-%m}", (first + timedelta(days=31)).replace(day=1)
        case _:
            raise ValueError("the board has no seasons")
    return Season(name, _midnight(first, zone), _midnight(following, zone))


def next_season(rules: Rules, ended: Season, now_s: float) -> Season:
    """Return the season to open at a moment after ``ended``; seasons in between are skipped.

    If the installation has other rules for the time zone than the one that opened ``ended``, the
    two can overlap. The rest of the season then gets a name of its own.

    Raises ValueError as ``season_at``.
    """
    found = season_at(rules, now_s)
    if found.start_s >= ended.end_s:
        return found
    return Season(_utc_name(ended.end_s), ended.end_s, found.end_s)


def require_season(rules: Rules) -> None:
    """Check that the seasons of rules can be computed; rules without seasons pass.

    Raises Invalid.
    """
    if not rules.season:
        if rules.time_zone:
            raise Invalid("a time zone is for boards with seasons")
        return
    expression = rules.season.removeprefix(CRON)
    if rules.season.startswith(CRON):
        if not _EXPRESSION.fullmatch(expression) or len(rules.season) > SEASON_BYTES_MAX:
            raise Invalid("a cron expression has five fields: minute hour day month weekday")
    elif rules.season not in PERIODS:
        raise Invalid("a season is daily, weekly, monthly or cron:EXPRESSION")
    if rules.time_zone not in available_timezones() - _NO_ZONES:
        raise Invalid(
            f"{rules.time_zone!r} is not the name of a time zone, such as Europe/Berlin or UTC"
        )
    try:
        season_at(rules, 1_600_000_000)
    except ValueError as error:
        raise Invalid(f"the season cannot be computed: {error}") from None


def _midnight(day: date, zone: ZoneInfo) -> int:
    """Return the first moment of a day.

    A midnight that clocks skip is the moment at which they are set forward; of two the first counts
    (``fold`` is 0 in both cases).
    """
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())


def _cron_season(expression: str, now: datetime) -> Season:
    try:
        # Only ticks that are counted forward decide: backward ones can differ where clocks change.
        before = next(_ticks(expression, now - timedelta(hours=3), reverse=True))
        start = end = before
        from_ = (before - timedelta(seconds=1)).astimezone(now.tzinfo)
        for tick in _ticks(expression, from_):
            start, end = end, tick
            if tick > now:
                break
    except CronSimError as error:
        raise ValueError(f"the expression is not a cron expression: {error}") from error
    except StopIteration as error:
        raise ValueError("the expression has no earlier or no later time") from error
    if not start <= now < end:
        raise ValueError("the expression has no earlier or no later time")
    start_s = int(start.timestamp())
    return Season(_utc_name(start_s), start_s, int(end.timestamp()))


def _utc_name(start_s: int) -> str:
    began = datetime.fromtimestamp(start_s, UTC)
    return f"{began:%Y-%m-%dT%H%M%S}Z" if began.second else f"{began:%Y-%m-%dT%H%M}Z"


def _ticks(expression: str, start: datetime, *, reverse: bool = False) -> Iterator[datetime]:
    """Return the ticks after a moment, or before it, as moments of UTC."""
    return (tick.astimezone(UTC) for tick in CronSim(expression, start, reverse=reverse))
