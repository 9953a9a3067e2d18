"""`scoreboard token`: print tokens of the local issuer."""

from pathlib import Path
from typing import Final

import click

from cli.output import print_lines
from cli.target import data_dir_option, load_audience, load_issuer, operator_name
from scoreboard.runtime.audit import write_audit
from scoreboard.security.tokens import READ, UPDATE

USERS_MAX: Final = 100_000
"""Maximum tokens of one call; a token takes about a millisecond to sign."""


@click.command()
@click.option("--sub", required=True, help="The user or the game server that the token is for.")
@click.option(
    "--scope",
    default=f"{UPDATE} {READ}",
    show_default=True,
    help="Scopes, separated by spaces; update:score:any is the scope of game "
    "servers, admin:scores that of administrators.",
)
@click.option("--ttl", "ttl_s", type=click.IntRange(min=1), default=3600, show_default=True,
              metavar="SECONDS", help="Lifetime of the token.")  # fmt: skip
@click.option("--users", type=click.IntRange(1, USERS_MAX),
              help="Print a line `SUB-N TOKEN` for each N from 1 to this number.")  # fmt: skip
@data_dir_option
def token(sub: str, scope: str, ttl_s: int, users: int | None, data_dir: Path) -> None:
    """Print a token of the local issuer, or one for each of several users.

    `scoreboard up` creates the issuer's key in its data folder.

    \b
    Examples:
      scoreboard token --sub alice
      scoreboard token --sub arena-7 --scope update:score:any --ttl 86400
      (umask 077; scoreboard token --sub load --users 1000 >tokens.txt)
    """  # noqa: D301
    issuer, audience = load_issuer(data_dir), load_audience(data_dir)
    scopes = scope.split()

    def issue(user: str) -> str:
        write_audit("token issue", actor=operator_name(), user_id=user, scopes=scopes)
        return issuer.issue(user, scopes, ttl_s, audience=audience)

    if users is None:
        print_lines([issue(sub)])
    else:
        names = (f"{sub}-{number}" for number in range(1, users + 1))
        print_lines(f"{name} {issue(name)}" for name in names)
