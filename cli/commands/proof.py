"""`scoreboard proof`: sign proofs of actions as a game server does, for development."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from cli.output import print_lines
from cli.parameters import ACTION_ID, BOARD, USER_ID
from cli.target import data_dir_option, load_audience, load_prover, operator_name
from scoreboard.model import BOARDS_MAX, POINTS_MAX
from scoreboard.runtime.audit import write_audit

TTL_MAX_S: Final = 600
"""The services accept no longer lifetime."""


@click.group()
def proof() -> None:
    """Sign proofs of actions for `scoreboard up`, as a game server does."""


@proof.command()
@click.option("--user", required=True, type=USER_ID, help="The user who did the action.")
@click.option("--action", "action_id", required=True, type=ACTION_ID, help="The actionId.")
@click.option("--points", required=True, type=click.IntRange(1, POINTS_MAX),
              help="Points of the action.")  # fmt: skip
@click.option("--board", "boards", type=BOARD, multiple=True,
              help="Board for which the proof is valid; can be repeated.  [default: those on which "
              "the kind of action counts]")  # fmt: skip
@click.option("--ttl", "ttl_s", type=click.IntRange(1, TTL_MAX_S), default=300, show_default=True,
              metavar="SECONDS", help="Lifetime of the proof.")  # fmt: skip
@data_dir_option
def sign(
    *,
    user: str,
    action_id: str,
    points: int,
    boards: Sequence[str],
    ttl_s: int,
    data_dir: Path,
) -> None:
    """Print a proof that a user did an action.

    `scoreboard up` creates the key in its data folder. Game servers sign with a key of their own:
    see docs/how-to/prove-actions.md.

    \b
    Example:
      scoreboard proof sign --user alice --action raid:77 --points 250
    """  # noqa: D301
    if len(boards) > BOARDS_MAX:
        raise click.UsageError(f"A proof is for at most {BOARDS_MAX} boards")
    signed = load_prover(data_dir).prove(
        user, action_id, points, ttl_s, boards=boards, audience=load_audience(data_dir)
    )
    write_audit("proof sign", actor=operator_name(), user_id=user, action_id=action_id)
    print_lines([signed])
