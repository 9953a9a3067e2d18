"""`scoreboard up`: the whole system by one command, on servers of our own or given ones.

`cli.running.plan` settles what is run, `cli.running.system` runs it.
"""

from pathlib import Path
from typing import Final

import click

from cli.running.data_dir_lock import lock_data_dir, stop_on_signals
from cli.running.plan import Options, Plan
from cli.running.system import System
from cli.target import DATA_DIR

PORT: Final = click.IntRange(0, 65535)


@click.command()
@click.option("--simulate", "players", type=click.IntRange(min=0), default=0, metavar="N",
              help="Let N players play.")  # fmt: skip
@click.option("--data-dir", type=click.Path(path_type=Path), default=DATA_DIR, show_default=True,
              help="Folder that keeps scores, keys and logs.")  # fmt: skip
@click.option(
    "--api-port", type=PORT, help="Port of the api and the page; 0: any.  [default: 8000]"
)
@click.option("--ws-port", type=PORT, help="Port of the streamer; 0: any.  [default: 8001]")
@click.option(
    "--issuer-port",
    type=PORT,
    help="Port of the sign-in; 0: any.  [default: 8002; any where --api-port is 0]",
)
@click.option("--redis-port", type=PORT, default=0, help="Port of Valkey; 0: any.")
@click.option("--postgres-port", type=PORT, default=0, help="Port of PostgreSQL; 0: any.")
@click.option("--api-metrics-port", type=PORT,
              help="Metrics of the api; 0: none.  [default: none]")  # fmt: skip
@click.option("--ws-metrics-port", type=PORT,
              help="Metrics and health of the streamer; 0: none.  [default: any]")  # fmt: skip
@click.option("--flusher-metrics-port", type=PORT,
              help="Metrics and health of the flusher; 0: none.  [default: any]")  # fmt: skip
@click.option("--private", "is_private", is_flag=True, help="Reading the board needs a token.")
@click.option("--json", "as_json", is_flag=True,
              help="Print addresses, with passwords, and process ids as JSON.")  # fmt: skip
def up(**options: object) -> None:
    """Run the whole system; Ctrl-C stops it, and scores are kept.

    Valkey and PostgreSQL come from wheels and keep their data in the data folder; REDIS_URL and
    DATABASE_URL together name servers of yours instead. SCOREBOARD_* settings reach the services;
    a flag wins over them.

    \b
    Examples:
      scoreboard up --simulate 20
      scoreboard up --data-dir /tmp/try --api-port 0 --ws-port 0 --json
    """  # noqa: D301
    chosen = Options(**options)  # pyright: ignore[reportArgumentType]
    with stop_on_signals() as stop, lock_data_dir(chosen.data_dir):
        System(Plan(chosen), stop).run()
