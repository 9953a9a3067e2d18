"""The parts of `scoreboard up`: start them in order, supervise them, stop them in reverse order.

Invariants: no child outlives this process, however it ends. The children are stopped in the order
in which work flows: players, api, issuer, streamer, flusher, then the servers. If a service ends,
`up` ends; an embedded server is restarted.
"""

import asyncio
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import click

from cli.administration import seed_catalogue
from cli.embedded.ports import HOST
from cli.embedded.servers import EmbeddedPostgres, EmbeddedServer, EmbeddedValkey
from cli.issuer.config import ADMIN_PASSWORD_FILE, is_loopback_url, issuer_url
from cli.issuer.oauth import ADMINISTRATOR
from cli.output import print_json, print_message
from cli.running.boards import create_boards, open_boards
from cli.running.default_actions import EXAMPLE_POINTS, SIMULATED_POINTS
from cli.running.log_rotation import rotate_if_large
from cli.running.plan import Plan
from cli.running.service import Service, wait_until_ready
from cli.running.supervisor import ServerSupervisor
from cli.signals import StopFlag
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
from scoreboard.runtime.sockets import connect_host, netloc

CHECK_INTERVAL_S: Final = 0.2

ADMIN_PATH: Final = "/admin"
"""The administrator's page; web/admin/main.js names it as its redirect URI."""


class _StopRequested(BaseException):
    """A signal has requested the stop."""


class System:
    """All parts of one plan; a signal sets ``stop``."""

    def __init__(self, plan: Plan, stop: StopFlag) -> None:
        self._plan = plan
        self._stop = stop
        self._stack = ExitStack()
        self._servers: list[EmbeddedServer] = []
        self._services: dict[str, Service] = {}

    def run(self) -> None:
        """Start all parts, wait until a stop is requested or a part ends, and stop all parts.

        Raises ServiceExited, EmbeddedFailed, SettingInvalid and the errors of `open_boards`.
        """
        with self._stack:
            try:
                self._start()
            except _StopRequested:
                raise click.Abort from None
            with suppress(_StopRequested):
                self._supervise()
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
        host = connect_host(settings.metrics_host)
        self._start_service("flusher", _ready_url(host, settings.flusher_metrics_port))
        open_boards(settings, self._check)
        viewers = f"tcp://{netloc(connect_host(settings.ws_host), settings.ws_port)}"
        self._start_service("streamer", _ready_url(host, settings.ws_metrics_port) or viewers)
        if plan.issuer_port:
            self._start_issuer()
        self._start_service("api", _ready_url(connect_host(settings.api_host), settings.api_port))
        wait_until_ready(list(self._services.values()), self._check)
        running = self._save_state()
        self._print_instructions(running)
        if options.players:
            self._start_players(running)
        if options.as_json:
            print_json(running)

    def _supervise(self) -> None:
        supervisors = [ServerSupervisor(server) for server in self._servers]
        is_saved = True
        while not self._stop.wait(CHECK_INTERVAL_S):
            for supervisor in supervisors:
                is_saved = not supervisor.restart_if_due(self._check_services) and is_saved
            self._check_services()
            if not is_saved:
                with suppress(OSError):  # the disk is still full; retry in the next turn
                    write_state_file(self._plan.options.data_dir, self._state())
                    is_saved = True

    def _check_services(self) -> None:
        """Check for a requested stop and that all services are alive, and rotate the logs.

        Raises ServiceExited.
        """
        self._check()
        for service in self._services.values():
            service.check()
        for log in self._logs():
            rotate_if_large(log)

    def _logs(self) -> Iterator[Path]:
        yield from (server.folder.log for server in self._servers)
        yield from (service.log for service in self._services.values())

    def _check(self) -> None:
        if self._stop.is_set():
            raise _StopRequested

    def _start_servers(self) -> None:
        plan, options = self._plan, self._plan.options
        if not plan.is_embedded:
            print_message(f"Running on {describe_stores(plan.environment)}, from the environment")
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
        origins = [origin for origin in plan.pages if is_loopback_url(origin)]
        pages = [f"{origin}{path}" for origin in origins for path in ("/", ADMIN_PATH)]
        self._add(
            Service(
                "issuer",
                [
                    *("-m", "cli.issuer", "--port", str(plan.issuer_port)),
                    *("--folder", str((plan.options.data_dir / ISSUER_DIR).absolute())),
                    *("--audience", settings.audience),
                    *(word for page in pages for word in ("--redirect-uri", page)),
                ],
                # The issuer connects to no server, so it needs no password.
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

    def _save_state(self) -> RunningSystem:
        """Write the state file, by which other commands find this system."""
        running = self._state()
        self._stack.callback(remove_state_file, self._plan.options.data_dir)
        write_state_file(self._plan.options.data_dir, running)
        return running

    def _state(self) -> RunningSystem:
        plan = self._plan
        servers = {server.kind: server.pid for server in self._servers}
        services = {name: service.pid for name, service in self._services.items()}
        return RunningSystem(
            api=plan.api_url,
            ws=plan.ws_url,
            redis=plan.environment[REDIS_URL],
            database=plan.environment[DATABASE_URL],
            issuer=plan.issuer_url,
            settings=plan.saved_settings,
            pids={
                "redis": servers.get("valkey"),
                "postgres": servers.get("postgres"),
                **{name: services[name] for name in ("api", "streamer", "flusher")},
                **{name: pid for name, pid in services.items() if name == "issuer"},
            },
        )

    def _print_instructions(self, running: RunningSystem) -> None:
        folder = self._plan.options.data_dir
        where = "" if folder == DATA_DIR else f" --data-dir {shlex.quote(str(folder))}"
        command = os.path.relpath(sys.argv[0]) if os.sep in sys.argv[0] else "scoreboard"
        password = folder / ISSUER_DIR / ADMIN_PASSWORD_FILE
        administration = (
            f"Administration: {running.api}{ADMIN_PATH}   (name {ADMINISTRATOR}, password in "
            f"{shlex.quote(str(password))})\n"
            if running.issuer
            else ""
        )
        print_message(
            f"The scoreboard is running. Page: {running.api}/   API: {running.api}/docs\n"
            f"{administration}"
            f"To raise a score, {'sign in on the page, or ' if running.issuer else ''}run in "
            "another terminal:\n"
            f'  curl {running.api}/api/scores/update -H "Authorization: Bearer '
            f'$({command} token --sub alice{where})" \\\n'
            "    -H 'Content-Type: application/json' "
            """-d '{"userId": "alice", "actionId": "win:'$(date +%s%N)'"}'\n"""
            f"To watch the board: {command} board watch{where}\n"
            "Press Ctrl-C to stop; scores are kept."
        )


def _ready_url(host: str, port: int) -> str:
    """Return the readiness address of a service; empty if it has no such port."""
    return f"http://{netloc(host, port)}/health/ready" if port else ""
