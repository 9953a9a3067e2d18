"""What `scoreboard up` is going to run, settled before anything starts: ports, issuer, environment.

Called by `cli.up`. What stays true: a flag wins over the environment, which wins over a default; a
port that is taken or a setting that is wrong is refused before there is anything to stop.
"""

import os
from pathlib import Path
from typing import Final

from msgspec import Struct

from cli.embedded_server import HOST, free_port
from cli.guards import refuse_taken
from cli.issuer_grants import PAGE
from cli.issuer_place import PORT as ISSUER_PORT
from cli.issuer_place import address_of
from cli.target import ISSUER
from scoreboard import settings as settings_module
from scoreboard.auth import LocalIssuer
from scoreboard.settings import Settings

WS_PATH: Final = "/ws/scoreboard"
NOT_SET: Final = "redis://unset"
"""Stands for the Redis that is yet to be started."""


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


class Plan:
    """The environment of the services, in the making. ``settings`` is what they will read."""

    def __init__(self, options: Options) -> None:
        """Settle everything but the addresses of servers that we start ourselves.

        Raises SettingInvalid, EmbeddedFailed where a port is taken.
        """
        self.options = options
        self.environment = dict(os.environ)
        self.environment["REDIS_URL"] = self.environment.get("REDIS_URL") or NOT_SET
        self.issuer_port = 0
        """The port of our own issuer; 0 where none runs."""
        given = settings_module.load(self.environment)
        if not given.jwks_url and not given.jwks_file:
            self._choose_issuer(given)
        self._choose_ports(given)

    @property
    def settings(self) -> Settings:
        """Give the settings as the services will read them."""
        return settings_module.load(self.environment)

    @property
    def needs_redis(self) -> bool:
        """Whether a Redis of our own is to be started."""
        return self.environment["REDIS_URL"] == NOT_SET

    @property
    def needs_database(self) -> bool:
        """Whether a PostgreSQL of our own is to be started."""
        return not self.environment.get("DATABASE_URL")

    @property
    def logs(self) -> Path:
        """The folder of the children's logs."""
        return self.options.data_dir / "logs"

    @property
    def api_url(self) -> str:
        """Where a browser on this machine finds the page."""
        settings = self.settings
        return f"http://{_reachable(settings.api_host)}:{settings.api_port}"

    @property
    def ws_url(self) -> str:
        """Where a viewer on this machine connects."""
        settings = self.settings
        return f"ws://{_reachable(settings.ws_host)}:{settings.ws_port}{WS_PATH}"

    @property
    def issuer_url(self) -> str:
        """The name and address of our own issuer; empty where none runs."""
        return self.environment["SCOREBOARD_ISSUER"] if self.issuer_port else ""

    def _choose_ports(self, given: Settings) -> None:
        options, environment = self.options, self.environment
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
        environment.setdefault("SCOREBOARD_WS_PUBLIC_URL", self.ws_url)
        hosts = (_reachable(given.api_host), "localhost")
        pages = [f"http://{host}:{ports['API_PORT']}" for host in hosts]
        environment.setdefault("SCOREBOARD_ORIGINS", ",".join(pages))

    def _choose_issuer(self, given: Settings) -> None:
        """Name the local issuer, by its address where it will sign players in."""
        options, environment = self.options, self.environment
        name = None
        if given.environment == "development":
            default = 0 if options.api_port == 0 else ISSUER_PORT
            port = default if options.issuer_port is None else options.issuer_port
            self.issuer_port = port or free_port()
            refuse_taken(self.issuer_port, "--issuer-port")
            name = address_of(HOST, self.issuer_port)
            environment["SCOREBOARD_SIGN_IN_ISSUER"] = name
            environment["SCOREBOARD_SIGN_IN_CLIENT_ID"] = PAGE.id
        issuer = LocalIssuer.create(options.data_dir / ISSUER, issuer=name)
        environment["SCOREBOARD_JWKS_FILE"] = str(issuer.jwks_file.absolute())
        environment["SCOREBOARD_ISSUER"] = issuer.issuer


def _reachable(host: str) -> str:
    return HOST if host in {"", "0.0.0.0", "::"} else host  # noqa: S104 (compared, not bound)
