"""`scoreboard up`: the whole system as child processes of this one, on servers of our own or given.

What stays true: one `up` uses a data folder at a time; a board that is open is left as it is, and
one whose Redis was emptied comes back from PostgreSQL before anyone is served; whatever ends this
process, no child stays behind. They are stopped in the order in which work flows: players, api,
issuer, streamer, flusher, and then the servers.
"""

import asyncio
import os
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import click
from msgspec import Struct

from cli.boards import make_board
from cli.embedded import EmbeddedPostgres, EmbeddedServer, EmbeddedValkey
from cli.embedded_server import HOST, free_port
from cli.guards import catching_signals, claiming, refuse_taken
from cli.issuer_grants import PAGE
from cli.issuer_place import PORT as ISSUER_PORT
from cli.issuer_place import address_of
from cli.processes import Service, wait_until_ready
from cli.recovery import reseed_board
from cli.render import print_json, progress, say
from cli.target import (
    DATA_DIR,
    ISSUER,
    Running,
    drop_note,
    open_archive,
    operator,
    write_note,
)
from scoreboard import archive, migrations
from scoreboard import settings as settings_module
from scoreboard.auth import LocalIssuer
from scoreboard.errors import ServiceEnded
from scoreboard.model import Board
from scoreboard.settings import Settings

WATCH_EVERY_S: Final = 0.2
WS_PATH: Final = "/ws/scoreboard"


class Options(Struct, frozen=True, kw_only=True):
    """What the command line says; a port None is the setting's or its default, 0 any free one."""

    data_dir: Path
    api_port: int | None = None
    ws_port: int | None = None
    issuer_port: int | None = None
    redis_port: int = 0
    postgres_port: int = 0
    api_metrics_port: int = 0
    ws_metrics_port: int = 0
    flusher_metrics_port: int = 0
    players: int = 0
    is_private: bool = False
    as_json: bool = False


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
@click.option("--api-metrics-port", type=PORT, default=0, help="Metrics of the api; 0: none.")
@click.option("--ws-metrics-port", type=PORT, default=0,
              help="Metrics and health of the streamer; 0: any.")  # fmt: skip
@click.option("--flusher-metrics-port", type=PORT, default=0,
              help="Metrics and health of the flusher; 0: any.")  # fmt: skip
@click.option("--private", "is_private", is_flag=True, help="Reading the board needs a token.")
@click.option("--json", "as_json", is_flag=True,
              help="Print addresses, with passwords, and process ids as JSON.")  # fmt: skip
def up(**options: object) -> None:
    """Run the whole system; Ctrl-C stops it, and scores are kept.

    Valkey and PostgreSQL come from wheels and keep their data in the data folder; REDIS_URL and
    DATABASE_URL name servers of yours instead. SCOREBOARD_* settings reach the services.

    \b
    Examples:
      scoreboard up --simulate 20
      scoreboard up --data-dir /tmp/try --api-port 0 --ws-port 0 --json
    """  # noqa: D301
    chosen = Options(**options)  # pyright: ignore[reportArgumentType]
    with catching_signals() as stop, claiming(chosen.data_dir):
        System(chosen, stop).run()


class _Stopped(BaseException):
    """A signal asked to stop before the system was up."""


class System:
    """All parts, started in order and stopped in reverse."""

    def __init__(self, options: Options, stop: threading.Event) -> None:
        self._options = options
        self._stop = stop
        self._stack = ExitStack()
        self._servers: list[EmbeddedServer] = []
        self._services: dict[str, Service] = {}
        self._environment = dict(os.environ)
        self._issuer_port = 0
        """The port of our own issuer; 0 where none runs."""

    def run(self) -> None:
        """Start everything, wait until asked to stop or a part ends, stop everything.

        Raises ServiceEnded, EmbeddedFailed, SettingInvalid and what preparing the board raises.
        """
        with self._stack:
            try:
                self._start()
                self._watch()
            except _Stopped:
                raise click.Abort from None
            say("Stopping …")

    def _start(self) -> None:
        settings = self._choose_settings()
        settings = self._start_servers(settings)
        say(f"Logs are in {self._logs}")
        migrations.migrate(settings.database_url.reveal())
        self._check()
        changed = asyncio.run(self._make_boards(settings))
        self._start_service("flusher", settings, settings.flusher_metrics_port)
        self._open_boards(settings, changed)
        self._start_service("streamer", settings, settings.ws_metrics_port)
        if self._issuer_port:
            self._start_issuer(settings)
        self._start_service("api", settings, settings.api_port)
        wait_until_ready(list(self._services.values()), self._check)
        running = self._announce(settings)
        if self._options.players:
            self._start_players(running)
        if self._options.as_json:
            print_json(running)

    def _watch(self) -> None:
        while not self._stop.wait(WATCH_EVERY_S):
            for server in self._servers:
                if not server.is_running:
                    raise ServiceEnded(f"{server.title} ended: {server.folder.log_tail()}")
            for service in self._services.values():
                service.check()

    def _check(self) -> None:
        if self._stop.is_set():
            raise _Stopped

    @property
    def _logs(self) -> Path:
        return self._options.data_dir / "logs"

    def _choose_settings(self) -> Settings:
        """Settle every setting but the servers' addresses; refuse ports that are taken.

        Raises SettingInvalid, EmbeddedFailed.
        """
        environment = self._environment
        environment.setdefault("REDIS_URL", "redis://unset")
        given = settings_module.load(environment)
        if not given.jwks_url and not given.jwks_file:
            self._choose_issuer(given)
        options = self._options
        api_port = given.api_port if options.api_port is None else options.api_port
        ws_port = given.ws_port if options.ws_port is None else options.ws_port
        ports = {
            "API_PORT": api_port or free_port(),
            "WS_PORT": ws_port or free_port(),
            "API_METRICS_PORT": options.api_metrics_port,
            # Their readiness is asked there, so there must be one.
            "WS_METRICS_PORT": options.ws_metrics_port or free_port(),
            "FLUSHER_METRICS_PORT": options.flusher_metrics_port or free_port(),
        }
        for name, port in ports.items():
            refuse_taken(port, f"SCOREBOARD_{name}")
            environment[f"SCOREBOARD_{name}"] = str(port)
        environment.setdefault(
            "SCOREBOARD_WS_PUBLIC_URL", f"ws://{given.ws_host}:{ports['WS_PORT']}{WS_PATH}"
        )
        pages = [f"http://{host}:{ports['API_PORT']}" for host in (given.api_host, "localhost")]
        environment.setdefault("SCOREBOARD_ORIGINS", ",".join(pages))
        return settings_module.load(environment)

    def _choose_issuer(self, given: Settings) -> None:
        """Name the local issuer, by its address where it will sign players in.

        Raises EmbeddedFailed where its port is taken.
        """
        environment, options = self._environment, self._options
        name = None
        if given.environment == "development":
            default = 0 if options.api_port == 0 else ISSUER_PORT
            port = default if options.issuer_port is None else options.issuer_port
            self._issuer_port = port or free_port()
            refuse_taken(self._issuer_port, "--issuer-port")
            name = address_of(HOST, self._issuer_port)
            environment["SCOREBOARD_SIGN_IN_ISSUER"] = name
            environment["SCOREBOARD_SIGN_IN_CLIENT_ID"] = PAGE.id
        issuer = LocalIssuer.create(options.data_dir / ISSUER, issuer=name)
        environment["SCOREBOARD_JWKS_FILE"] = str(issuer.jwks_file.absolute())
        environment["SCOREBOARD_ISSUER"] = issuer.issuer

    def _start_servers(self, settings: Settings) -> Settings:
        environment, options = self._environment, self._options
        if settings.redis_url.reveal() == "redis://unset":
            valkey = EmbeddedValkey(options.data_dir / "valkey", options.redis_port)
            self._start_server(valkey)
            environment["REDIS_URL"] = valkey.url
        self._check()
        if not settings.database_url:
            postgres = EmbeddedPostgres(options.data_dir / "postgres", options.postgres_port)
            self._start_server(postgres)
            environment["DATABASE_URL"] = postgres.url
        self._check()
        return settings_module.load(environment)

    def _start_server(self, server: EmbeddedServer) -> None:
        self._stack.callback(server.stop)
        server.start()
        self._servers.append(server)

    def _start_issuer(self, settings: Settings) -> None:
        self._check()
        pages = [f"http://{host}:{settings.api_port}/" for host in (HOST, "localhost")]
        issuer = Service(
            "issuer",
            [
                *("-m", "cli.issuer", "--port", str(self._issuer_port)),
                *("--folder", str((self._options.data_dir / ISSUER).absolute())),
                *("--audience", settings.audience),
                *(word for page in pages for word in ("--redirect-uri", page)),
            ],
            # It asks nobody anything, so it gets no password of a server.
            {n: v for n, v in self._environment.items() if n not in {"REDIS_URL", "DATABASE_URL"}},
            self._logs / "issuer.log",
            ready_url=f"{address_of(HOST, self._issuer_port)}/jwks.json",
        )
        self._stack.callback(issuer.stop)
        issuer.start()
        self._services[issuer.name] = issuer

    def _start_service(self, name: str, settings: Settings, health_port: int) -> None:
        self._check()
        service = Service(
            name,
            ["-m", name],
            self._environment,
            self._logs / f"{name}.log",
            ready_url=f"http://{HOST}:{health_port}/health/ready",
            drain_s=settings.drain_s,
        )
        self._stack.callback(service.stop)
        service.start()
        self._services[name] = service

    def _start_players(self, running: Running) -> None:
        options = self._options
        players = Service(
            "simulation",
            [
                *("-m", "cli", "simulate", "--players", str(options.players)),
                *("--api", running.api, "--data-dir", str(options.data_dir.absolute())),
            ],
            self._environment,
            self._logs / "simulation.log",
        )
        self._stack.callback(players.stop)
        players.start()
        self._services[players.name] = players

    async def _make_boards(self, settings: Settings) -> list[str]:
        """Make the boards that are missing; list those whose privacy is to change.

        Raises DatabaseUnavailable.
        """
        changed: list[str] = []
        is_public = not self._options.is_private
        async with open_archive(settings) as connection:
            for name in settings.boards:
                await make_board(connection, Board(name, is_public=is_public), actor=operator())
                found = await archive.select_board(connection, name)
                if found.is_public != is_public:
                    async with connection.transaction():
                        await archive.publish_board(connection, name, is_public=is_public)
                        await archive.insert_audit(
                            connection,
                            actor=operator(),
                            action="board publish" if is_public else "board unpublish",
                            board=name,
                            detail={},
                        )
                    changed.append(name)
        return changed

    def _open_boards(self, settings: Settings, changed: list[str]) -> None:
        """Open what is closed: new, emptied, or left by a killed reseed."""

        def report(step: str, done: int, total: int) -> None:
            self._check()
            show(step, done, total)

        for name in settings.boards:
            with progress() as show:
                done = asyncio.run(
                    reseed_board(
                        settings,
                        name,
                        # Readers learn from Redis whether a board is public: it must be told.
                        force=name in changed,
                        only_closed=True,
                        actor=operator(),
                        report=report,
                    )
                )
            if done is not None and done.users:
                say(f"Board {name} came back from PostgreSQL: {done.users} users")

    def _announce(self, settings: Settings) -> Running:
        """Leave the note for other commands, and say what to do next."""
        servers = {server.kind: server.pid for server in self._servers}
        running = Running(
            api=f"http://{settings.api_host}:{settings.api_port}",
            ws=f"ws://{settings.ws_host}:{settings.ws_port}{WS_PATH}",
            redis=settings.redis_url.reveal(),
            database=settings.database_url.reveal(),
            issuer=self._environment["SCOREBOARD_ISSUER"] if self._issuer_port else "",
            pids={
                "redis": servers.get("valkey"),
                "postgres": servers.get("postgres"),
                **{name: self._services[name].pid for name in ("api", "streamer", "flusher")},
                **({"issuer": self._services["issuer"].pid} if self._issuer_port else {}),
            },
        )
        self._stack.callback(drop_note, self._options.data_dir)
        write_note(self._options.data_dir, running)
        folder = self._options.data_dir
        where = "" if folder == DATA_DIR else f" --data-dir {folder}"
        command = os.path.relpath(sys.argv[0]) if os.sep in sys.argv[0] else "scoreboard"
        say(
            f"The scoreboard runs. Its page: {running.api}/   its API: {running.api}/docs\n"
            f"Raise a score {'there by signing in, or ' if running.issuer else ''}from another "
            "terminal:\n"
            f'  curl {running.api}/api/scores/update -H "Authorization: Bearer '
            f'$({command} token --sub alice{where})" \\\n'
            "    -H 'Content-Type: application/json' "
            """-d '{"userId": "alice", "actionId": "win:'$(date +%s%N)'"}'\n"""
            f"Watch the board here: {command} board watch{where}\n"
            "Ctrl-C stops everything; scores are kept."
        )
        return running
