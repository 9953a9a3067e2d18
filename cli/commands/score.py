"""`scoreboard score`: correct the score of a user."""

from typing import Any

import click

from cli.moderation import Choice, act_options, perform
from cli.parameters import USER_ID
from scoreboard.model import SCORE_MAX
from scoreboard.moderation.plans import Correction


@click.group()
def score() -> None:
    """Correct scores."""


@score.command(context_settings={"ignore_unknown_options": True})
@click.argument("user_id", type=USER_ID)
@click.argument("points", type=click.IntRange(-SCORE_MAX, SCORE_MAX))
@act_options
def correct(*, user_id: str, points: int, **chosen: Any) -> None:  # noqa: ANN401 (Choice's fields)
    """Add POINTS to the score of USER_ID, or take them away if they are negative.

    A change that would take the score out of the board's bounds is refused.

    \b
    Examples:
      scoreboard score correct alice -30 --reason "points of a bug" --dry-run
      scoreboard score correct alice +5 --reason "lost in an outage" --yes
    """  # noqa: D301
    if not points:
        raise click.BadParameter("POINTS must not be 0")
    perform(Correction(user_id, points), Choice(**chosen))
