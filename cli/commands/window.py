"""`scoreboard window`: void all actions of a user in a span of time."""

from datetime import datetime
from typing import Any

import click

from cli.moderation import Choice, act_options, perform
from cli.parameters import MOMENT, USER_ID
from scoreboard.moderation.plans import WindowVoid


@click.group()
def window() -> None:
    """Void all actions of a span of time."""


@window.command()
@click.option("--user", "user_id", type=USER_ID, required=True, help="Whose actions.")
@click.option("--from", "since", type=MOMENT, required=True, help="First time, such as 2026-07-01 "
              "or 2026-07-01T08:30:00Z; UTC without a zone.")  # fmt: skip
@click.option(
    "--to", "until", type=MOMENT, required=True, help="Time before which the actions are."
)
@act_options
def void(
    *,
    user_id: str,
    since: datetime,
    until: datetime,
    **chosen: Any,  # noqa: ANN401 (Choice's fields)
) -> None:
    """Take back what all actions of a user in a span of time counted, as one act.

    The time of an action is the one at which Redis applied it. Actions that are voided already are
    left out; at most 10,000 actions are voided at once.

    \b
    Example:
      scoreboard window void --user alice --from 2026-07-01T08:00:00Z --to 2026-07-01T09:00:00Z --reason "bot"
    """  # noqa: D301, E501 (an example on one line)
    if since >= until:
        raise click.BadParameter("--from must be before --to")
    perform(WindowVoid(user_id, since, until), Choice(**chosen))
