"""`scoreboard token`: prints a token of the local issuer, and nothing else."""

from pathlib import Path

import click

from cli.output import print_lines
from cli.target import data_dir_option, load_audience, load_issuer
from scoreboard.security.tokens import READ, UPDATE


@click.command()
@click.option("--sub", required=True, help="The user, or the game server, the token is for.")
@click.option(
    "--scope",
    default=f"{UPDATE} {READ}",
    show_default=True,
    help="What it allows, by space; update:score:any makes it a game server's.",
)
@click.option("--ttl", "ttl_s", type=click.IntRange(min=1), default=3600, show_default=True,
              metavar="SECONDS", help="How long it is valid.")  # fmt: skip
@data_dir_option
def token(sub: str, scope: str, ttl_s: int, data_dir: Path) -> None:
    """Print a token of the local issuer that `scoreboard up` made.

    \b
    Examples:
      scoreboard token --sub alice
      scoreboard token --sub arena-7 --scope update:score:any --ttl 86400
    """  # noqa: D301
    issuer, audience = load_issuer(data_dir), load_audience(data_dir)
    print_lines([issuer.issue(sub, scope.split(), ttl_s, audience=audience)])
