"""Types of command-line parameters: durations, ports, boards, ids of users and actions."""

import math
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from scoreboard.errors import Invalid
from scoreboard.model import (
    BOARD_FORM,
    ID_FORM,
    SCOPE_PATTERN,
    SCORE_MAX,
    is_board_name,
    is_identifier,
)

PORT: Final = click.IntRange(0, 65_535)
FILE: Final = click.Path(dir_okay=False, path_type=Path)
_KIND: Final = re.compile(r"[A-Za-z0-9._|@-]{1,64}")
"""The part of an actionId before the colon; the table `actions` has the same constraint."""

_SCOPE: Final = re.compile(SCOPE_PATTERN)

NONE: Final = "none"
"""The word that removes a limit."""

_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_SPAN: Final = re.compile(r"(\d{1,7})([smhd])", re.ASCII)

_HEAD: Final = re.compile(r"(\d{1,18}):([0-9a-f]{64}|)\s*")


class Number(click.FloatRange):
    """A number within a range; rejects `nan`, which compares as within every range."""

    unit = "number"

    def convert(
        self,
        value: Any,  # noqa: ANN401 (as click declares it)
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """Parse the number.

        Raises click.BadParameter.
        """
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a {self.unit}", param, ctx)
        return number


class Seconds(Number):
    """A number of seconds within a range."""

    unit = "number of seconds"


class Points(click.ParamType):
    """The most points of a limit; `none`, which is 0, for no limit."""

    name = "points"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Parse the number.

        Raises click.BadParameter.
        """
        if value == NONE:
            return 0
        if not re.fullmatch(r"\d{1,10}", str(value)) or not 1 <= int(value) <= SCORE_MAX:
            self.fail(f"{value!r} is not a number from 1 to {SCORE_MAX}, or none", param, ctx)
        return int(value)


class Span(click.ParamType):
    """A length of time such as `90s`, `30m`, `1h` or `7d`, in seconds; `none` is 0."""

    name = "time"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Parse the length.

        Raises click.BadParameter.
        """
        if value == NONE:
            return 0
        found = _SPAN.fullmatch(str(value))
        if found is None:
            self.fail(f"{value!r} is not a time such as 90s, 30m, 1h or 7d, or none", param, ctx)
        return int(found[1]) * _UNITS_S[found[2]]


class Moment(click.ParamType):
    """A time in ISO 8601, in UTC if it names no zone."""

    name = "time"

    def convert(
        self, value: str | datetime, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Parse the time.

        Raises click.BadParameter.
        """
        try:
            found = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a time such as 2026-07-01T08:30:00Z", param, ctx)
        return found if found.tzinfo else found.replace(tzinfo=UTC)


class HeadOfChain(click.ParamType):
    """The head of the audit log, as `audit verify` prints it."""

    name = "head"

    def convert(
        self,
        value: str,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[int, str]:
        """Parse the number and the hash.

        Raises click.BadParameter.
        """
        match = _HEAD.fullmatch(value)
        if match is None:
            self.fail("the head has the form NUMBER:HASH of `audit verify`", param, ctx)
        return int(match[1]), match[2]


class BoardName(click.ParamType):
    """The name of a board."""

    name = "board"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the name.

        Raises click.BadParameter.
        """
        if not is_board_name(value):
            self.fail(f"a board name has {BOARD_FORM}", param, ctx)
        return value


class Kind(click.ParamType):
    """A kind of action."""

    name = "kind"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the kind.

        Raises click.BadParameter.
        """
        if not _KIND.fullmatch(value):
            self.fail("a kind has 1 to 64 characters of A-Z a-z 0-9 . _ | @ -", param, ctx)
        return value


class Scope(click.ParamType):
    """A scope that a kind of action requires."""

    name = "scope"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the scope.

        Raises click.BadParameter.
        """
        if not _SCOPE.fullmatch(value):
            self.fail("a scope has 1 to 64 characters of A-Z a-z 0-9 . _ : / -", param, ctx)
        return value


class Identifier(click.ParamType):
    """The id of a user or of an action, as ``name`` says.

    An id of the wrong form is an invalid value (exit 5), as it is for the api and in a CSV file.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the id.

        Raises Invalid.
        """
        del param, ctx
        if not is_identifier(value):
            raise Invalid(f"the {self.name} id must have {ID_FORM}")
        return value


BOARD: Final = BoardName()
MOMENT: Final = Moment()
POINTS: Final = Points()
SPAN: Final = Span()
CHAIN_HEAD: Final = HeadOfChain()
KIND: Final = Kind()
SCOPE: Final = Scope()
USER_ID: Final = Identifier("user")
ACTION_ID: Final = Identifier("action")
