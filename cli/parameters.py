"""Types of command-line parameters that click lacks."""

import math
from typing import Any

import click


class Seconds(click.FloatRange):
    """A number of seconds within a range; `nan`, which is within every range, is refused."""

    def convert(
        self,
        value: Any,  # noqa: ANN401 (as click declares it)
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """Read the number.

        Raises click.BadParameter.
        """
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail("'nan' is not a number of seconds", param, ctx)
        return seconds
