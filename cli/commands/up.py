"""`scoreboard up`: run the whole system, on embedded servers or on given ones."""

from pathlib import Path

import click

from cli.parameters import PORT
from cli.running.data_dir_lock import lock_data_dir
from cli.running.plan import Plan, UpOptions
from cli.running.system import System
from cli.signals import stop_on_signals
from cli.target import DATA_DIR


@click.command()
@click.option("--simulate", "players", type=click.IntRange(min=0), default=0, metavar="N",
              help="Run N simulated players.")  # fmt: skip
@click.option("--data-dir", type=click.Path(path_type=Path), default=DATA_DIR, show_default=True,
              help="Folder of scores, keys and logs.")  # fmt: skip
@click.option("--api-port", type=PORT,
              help="Port of the api and the page; 0 for any.  [default: 8000]")  # fmt: skip
@click.option("--ws-port", type=PORT,
              help="Port of the streamer; 0 for any.  [default: 8001]")  # fmt: skip
@click.option("--issuer-port", type=PORT, help="Port of the issuer; 0 for any.  [default: 8002, "
              "or any if --api-port is 0]")  # fmt: skip
@click.option("--redis-port", type=PORT, default=0, help="Port of Valkey; 0 for any.")
@click.option("--postgres-port", type=PORT, default=0, help="Port of PostgreSQL; 0 for any.")
@click.option("--api-metrics-port", type=PORT,
              help="Port of the api's metrics and health; 0 for none.  [default: any]")  # fmt: skip
@click.option("--ws-metrics-port", type=PORT, help="Port of the streamer's metrics and health; "
              "0 for none.  [default: any]")  # fmt: skip
@click.option("--flusher-metrics-port", type=PORT, help="Port of the flusher's metrics and "
              "health; 0 for none.  [default: any]")  # fmt: skip
@click.option("--private", "is_private", is_flag=True, help="Require a token to read the boards.")
@click.option("--json", "as_json", is_flag=True, help="Print addresses, including passwords, and "
              "process ids as JSON.")  # fmt: skip
def up(**options: object) -> None:
    """Run the whole system on this machine, until Ctrl-C.

    Valkey and PostgreSQL run as embedded servers and keep their data in the data folder; set
    REDIS_URL and DATABASE_URL to use your own servers instead. SCOREBOARD_* variables configure
    the services; options of this command override them.

    \b
    Examples:
      scoreboard up --simulate 20
      scoreboard up --data-dir /tmp/try --api-port 0 --ws-port 0 --json
    """  # noqa: D301
    chosen = UpOptions(**options)  # pyright: ignore[reportArgumentType]
    with stop_on_signals() as stop, lock_data_dir(chosen.data_dir):
        System(Plan(chosen), stop).run()
