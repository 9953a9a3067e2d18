"""`scoreboard token`: print a token of the local issuer."""

from pathlib import Path

import click

from cli.output import print_lines
from cli.target import data_dir_option, load_audience, load_issuer, operator_name
from scoreboard.runtime.audit import write_audit
from scoreboard.security.tokens import READ, UPDATE


@click.command()
@click.option("--sub", required=True, help="The user or the game server that the token is for.")
@click.option(
    "--scope",
    default=f"{UPDATE} {READ}",
    show_default=True,
    help="Scopes, separated by spaces; update:score:any is the scope of game servers.",
)
@click.option("--ttl", "ttl_s", type=click.IntRange(min=1), default=3600, show_default=True,
              metavar="SECONDS", help="Lifetime of the token.")  # fmt: skip
@data_dir_option
def token(sub: str, scope: str, ttl_s: int, data_dir: Path) -> None:
    """Print a token of the local issuer.

    `scoreboard up` creates the issuer's key in its data folder.

    \b
    Examples:
      scoreboard token --sub alice
      scoreboard token --sub arena-7 --scope update:score:any --ttl 86400
    """  # noqa: D301
    issuer, audience = load_issuer(data_dir), load_audience(data_dir)
    write_audit("token issue", actor=operator_name(), user_id=sub, scopes=scope.split())
    print_lines([issuer.issue(sub, scope.split(), ttl_s, audience=audience)])
