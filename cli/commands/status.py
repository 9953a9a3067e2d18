"""`scoreboard status`: one look at the whole system."""

import asyncio
import sys
from pathlib import Path
from typing import Final

import click

from cli.output import is_terminal, print_json, print_message, print_table
from cli.parameters import Seconds
from cli.system_status import DOWN, SystemStatus, examine, is_in_need
from cli.target import data_dir_option, json_option, load_settings
from scoreboard.health.checks import UNKNOWN, Check

INTERVAL_MAX_S: Final = 60.0
ACTION: Final = 1
UNAVAILABLE: Final = 69


@click.command()
@click.option("--interval", "interval_s", type=Seconds(0.1, INTERVAL_MAX_S), default=1.0,
              show_default=True, metavar="SECONDS",
              help="Time for which refusals are counted.")  # fmt: skip
@json_option
@data_dir_option
def status(*, interval_s: float, as_json: bool, data_dir: Path) -> int:
    """Show the state of every part of the system, and what to do.

    Servers and services are asked at the same time; one that does not answer is one line. A line
    that ends with another one is marked as its effect, and needs no action of its own.

    Exit 0 if all is well, 1 if something has to be done, 69 if a server or service does not answer.

    \b
    Examples:
      scoreboard status
      scoreboard status --json | jq '.checks[] | select(.advice)'
    """  # noqa: D301
    settings = load_settings(data_dir)
    found = asyncio.run(examine(settings, interval_s=interval_s))
    if as_json:
        print_json({"status": _status_of(found), "checks": found.checks,
                    "effects": found.effects, "refusals": found.refusals})  # fmt: skip
    else:
        print_table(
            ("", "part", "state", "detail", "what to do"),
            [
                (
                    _mark(one, is_effect=name in found.effects),
                    name,
                    one.state,
                    one.detail,
                    one.advice,
                )
                for name, one in found.checks.items()
            ],
        )
    if not (found.is_down or found.needs_action):
        print_message("All is well")
    if found.is_down:
        return UNAVAILABLE
    return ACTION if found.needs_action else 0


def _status_of(found: SystemStatus) -> str:
    return "unavailable" if found.is_down else "action needed" if found.needs_action else "well"


def _mark(check: Check, *, is_effect: bool) -> str:
    """Return the mark of a line: a sign on a terminal, a word elsewhere."""
    word, sign = "ok", "✓"
    if is_effect:
        word, sign = "effect", "↳"
    elif is_in_need(check):
        word, sign = DOWN if check.state == DOWN else "action", "✗"
    elif check.state == UNKNOWN:
        word, sign = UNKNOWN, "?"
    return sign if is_terminal(sys.stdout) else word
