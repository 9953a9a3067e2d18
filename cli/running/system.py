"""The parts of `scoreboard up`: started in order, watched, and stopped in reverse.

What stays true: whatever ends this process, no child stays behind. They are stopped in the order in
which work flows: players, api, issuer, streamer, flusher, and then the servers. A service that ends
ends the whole; a server of our own is started again.
"""

import asyncio
import os
import shlex
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import click

from cli.administration import seed_catalogue
from cli.embedded.ports import HOST, connect_host, netloc
from cli.embedded.servers import EmbeddedPostgres, EmbeddedServer, EmbeddedValkey
from cli.issuer.config import is_loopback_url, issuer_url
from cli.output import print_json, print_message
from cli.running.boards import create_boards, open_boards
from cli.running.default_actions import EXAMPLE_POINTS, SIMULATED_POINTS
from cli.running.log_rotation import cap
from cli.running.plan import Plan
from cli.running.service import Service, wait_until_ready
from cli.running.supervisor import ServerSupervisor
from cli.target import (
    DATA_DIR,
    DATABASE_URL,
    ISSUER_DIR,
    REDIS_URL,
    STORE_URLS,
    RunningSystem,
    describe_stores,
    operator_name,
    remove_state_file,
    write_state_file,
)
from scoreboard.ledger import migrations

WATCH_EVERY_S: Final = 0.2


class _Stopped(BaseException):
    """A signal asked to stop."""


class System:
    """All parts of one plan; ``stop`` is set when a signal asks for the end."""

    def __init__(self, plan: Plan, stop: threading.Event) -> None:
        self._plan = plan
        self._stop = stop
        self._stack = ExitStack()
        self._servers: list[EmbeddedServer] = []
        self._services: dict[str, Service] = {}

    def run(self) -> None:
        """Start everything, wait until asked to stop or a part ends, stop everything.

        Raises ServiceExited, EmbeddedFailed, SettingInvalid and what opening the boards raises.
        """
        with self._stack:
            try:
                self._start()
            except _Stopped:
                raise click.Abort from None
            with suppress(_Stopped):
                self._watch()
            print_message("Stopping …")

    def _start(self) -> None:
        plan, options = self._plan, self._plan.options
        self._start_servers()
        print_message(f"Logs are in {plan.logs}")
        settings = plan.settings
        migrations.migrate(settings.database_url.reveal())
        self._check()
        asyncio.run(create_boards(settings, is_public=not options.is_private))
        asyncio.run(
            seed_catalogue(settings, SIMULATED_POINTS | EXAMPLE_POINTS, actor=operator_name())
        )
        operators = connect_host(settings.metrics_host)
        self._start_service("flusher", _ready_at(operators, settings.flusher_metrics_port))
        open_boards(settings, self._check)
        viewers = f"tcp://{netloc(connect_host(settings.ws_host), settings.ws_port)}"
        self._start_service("streamer", _ready_at(operators, settings.ws_metrics_port) or viewers)
        if plan.issuer_port:
            self._start_issuer()
        self._start_service("api", _ready_at(connect_host(settings.api_host), settings.api_port))
        wait_until_ready(list(self._services.values()), self._check)
        running = self._leave_note()
        self._say_what_next(running)
        if options.players:
            self._start_players(running)
        if options.as_json:
            print_json(running)

    def _watch(self) -> None:
        keepers = [ServerSupervisor(server) for server in self._servers]
        is_noted = True
        while not self._stop.wait(WATCH_EVERY_S):
            for keeper in keepers:
                is_noted = not keeper.look(self._look_around) and is_noted
            self._look_around()
            if not is_noted:
                with suppress(OSError):  # the disk is still full: try again
                    write_state_file(self._plan.options.data_dir, self._running())
                    is_noted = True

    def _look_around(self) -> None:
        """Make sure that nobody asked to stop, that all services live, and that logs are capped.

        Raises ServiceExited.
        """
        self._check()
        for service in self._services.values():
            service.check()
        for log in self._logs():
            cap(log)

    def _logs(self) -> Iterator[Path]:
        yield from (server.folder.log for server in self._servers)
        yield from (service.log for service in self._services.values())

    def _check(self) -> None:
        if self._stop.is_set():
            raise _Stopped

    def _start_servers(self) -> None:
        plan, options = self._plan, self._plan.options
        if not plan.has_own_servers:
            print_message(
                f"Running on {describe_stores(plan.environment)}, named by the environment"
            )
            return
        valkey = EmbeddedValkey(options.data_dir / "valkey", options.redis_port)
        self._start_server(valkey)
        plan.environment[REDIS_URL] = valkey.url
        postgres = EmbeddedPostgres(options.data_dir / "postgres", options.postgres_port)
        self._start_server(postgres)
        plan.environment[DATABASE_URL] = postgres.url

    def _start_server(self, server: EmbeddedServer) -> None:
        self._check()
        self._stack.callback(server.stop)
        server.start()
        self._servers.append(server)

    def _start_service(self, name: str, ready_url: str) -> None:
        self._add(
            Service(
                name,
                ["-m", name],
                self._plan.environment,
                self._plan.logs / f"{name}.log",
                ready_url=ready_url,
                drain_s=self._plan.settings.drain_s,
            )
        )

    def _start_issuer(self) -> None:
        plan = self._plan
        settings = plan.settings
        pages = [f"{page}/" for page in plan.pages if is_loopback_url(page)]
        self._add(
            Service(
                "issuer",
                [
                    *("-m", "cli.issuer", "--port", str(plan.issuer_port)),
                    *("--folder", str((plan.options.data_dir / ISSUER_DIR).absolute())),
                    *("--audience", settings.audience),
                    *(word for page in pages for word in ("--redirect-uri", page)),
                ],
                # It asks nobody anything, so it gets no password of a server.
                {name: text for name, text in plan.environment.items() if name not in STORE_URLS},
                plan.logs / "issuer.log",
                ready_url=f"{issuer_url(HOST, plan.issuer_port)}/jwks.json",
            )
        )

    def _start_players(self, running: RunningSystem) -> None:
        options = self._plan.options
        self._add(
            Service(
                "simulation",
                [
                    *("-m", "cli", "simulate", "--players", str(options.players)),
                    *("--api", running.api, "--data-dir", str(options.data_dir.absolute())),
                ],
                self._plan.environment,
                self._plan.logs / "simulation.log",
            )
        )

    def _add(self, service: Service) -> None:
        self._check()
        self._stack.callback(service.stop)
        service.start()
        self._services[service.name] = service

    def _leave_note(self) -> RunningSystem:
        """Leave the note by which other commands find this system."""
        running = self._running()
        self._stack.callback(remove_state_file, self._plan.options.data_dir)
        write_state_file(self._plan.options.data_dir, running)
        return running

    def _running(self) -> RunningSystem:
        plan = self._plan
        servers = {server.kind: server.pid for server in self._servers}
        services = {name: service.pid for name, service in self._services.items()}
        return RunningSystem(
            api=plan.api_url,
            ws=plan.ws_url,
            redis=plan.environment[REDIS_URL],
            database=plan.environment[DATABASE_URL],
            issuer=plan.issuer_url,
            settings=plan.noted,
            pids={
                "redis": servers.get("valkey"),
                "postgres": servers.get("postgres"),
                **{name: services[name] for name in ("api", "streamer", "flusher")},
                **{name: pid for name, pid in services.items() if name == "issuer"},
            },
        )

    def _say_what_next(self, running: RunningSystem) -> None:
        folder = self._plan.options.data_dir
        where = "" if folder == DATA_DIR else f" --data-dir {shlex.quote(str(folder))}"
        command = os.path.relpath(sys.argv[0]) if os.sep in sys.argv[0] else "scoreboard"
        print_message(
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


def _ready_at(host: str, port: int) -> str:
    """Return where a service says that it is ready; empty where it has no such port."""
    return f"http://{netloc(host, port)}/health/ready" if port else ""
