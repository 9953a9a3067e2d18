"""Types of command-line parameters: durations, ports, boards, ids of users and actions."""

import math
import re
from pathlib import Path
from typing import Any, Final

import click

from cli.text import ID_RULE
from scoreboard.errors import Invalid
from scoreboard.model import is_board_name, is_identifier

PORT: Final = click.IntRange(0, 65_535)
FILE: Final = click.Path(dir_okay=False, path_type=Path)
_KIND: Final = re.compile(r"[A-Za-z0-9._|@-]{1,64}")
"""The part of an actionId before the colon; the table `actions` has the same constraint."""


class Seconds(click.FloatRange):
    """A number of seconds within a range; rejects `nan`, which compares as within every range."""

    def convert(
        self,
        value: Any,  # noqa: ANN401 (as click declares it)
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """Parse the number.

        Raises click.BadParameter.
        """
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail("'nan' is not a number of seconds", param, ctx)
        return seconds


class BoardName(click.ParamType):
    """The name of a board."""

    name = "board"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the name.

        Raises click.BadParameter.
        """
        if not is_board_name(value):
            self.fail("a board name has 1 to 32 characters of a-z 0-9 _ . -", param, ctx)
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
            raise Invalid(f"the {self.name} id must have {ID_RULE}")
        return value


BOARD: Final = BoardName()
KIND: Final = Kind()
USER_ID: Final = Identifier("user")
ACTION_ID: Final = Identifier("action")
