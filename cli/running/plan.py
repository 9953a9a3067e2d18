"""What `scoreboard up` is going to run, settled before anything starts: ports, issuer, environment.

Called by `cli.commands.up`. What stays true: a flag wins over the environment, which wins over a
default; a port that is taken or a setting that is wrong is refused before there is anything to
stop; both stores are ours or both are named by the environment.
"""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

from msgspec import Struct

from cli.embedded.ports import HOST, check_port_free, connect_host, netloc
from cli.embedded.server import free_port
from cli.issuer.config import PORT as ISSUER_PORT
from cli.issuer.config import issuer_url
from cli.issuer.oauth import PAGE
from cli.target import (
    DATABASE_URL,
    ISSUER_DIR,
    REDIS_URL,
    REDIS_URL_UNSET,
    STORE_URLS,
    unset_libpq_variables,
)
from scoreboard.errors import OperatorMistake
from scoreboard.runtime import settings as settings_module
from scoreboard.runtime.settings import Settings, describe, service_links
from scoreboard.security.tokens import LocalIssuer

WS_PATH: Final = "/ws/scoreboard"
FILES: Final = ("SCOREBOARD_JWKS_FILE",)
SECRET_FILES: Final = ("SCOREBOARD_REDIS_SECRET", "SCOREBOARD_DATABASE_SECRET")


class Options(Struct, frozen=True, kw_only=True):
    """What the command line says; None leaves it to the environment and the default.

    Port 0 is any free one; of metrics it is none.
    """

    data_dir: Path
    api_port: int | None = None
    ws_port: int | None = None
    issuer_port: int | None = None
    redis_port: int = 0
    postgres_port: int = 0
    api_metrics_port: int | None = None
    ws_metrics_port: int | None = None
    flusher_metrics_port: int | None = None
    players: int = 0
    is_private: bool = False
    as_json: bool = False


class Plan:
    """The environment of the services, in the making. ``settings`` is what they will read."""

    def __init__(self, options: Options) -> None:
        """Settle everything but the addresses of servers that we start ourselves.

        Raises OperatorMistake, SettingInvalid, EmbeddedFailed where a port is taken.
        """
        self.options = options
        self.has_own_servers = _has_own_servers()
        """Whether `up` starts Valkey and PostgreSQL itself."""
        if self.has_own_servers:
            unset_libpq_variables()
        links = service_links(os.environ)
        self.environment = {name: text for name, text in os.environ.items() if name not in links}
        if self.has_own_servers:
            self.environment |= {REDIS_URL: REDIS_URL_UNSET, DATABASE_URL: ""}
        self.issuer_port = 0
        """The port of our own issuer; 0 where none runs."""
        given = settings_module.load(self.environment)
        self._refuse_half_of_it(given)
        self._name_files_in_full(given)
        if not given.jwks_url and not given.jwks_file:
            self._choose_issuer(given)
        self._choose_ports(given)

    @property
    def settings(self) -> Settings:
        """Give the settings as the services will read them."""
        return settings_module.load(self.environment)

    @property
    def noted(self) -> dict[str, str]:
        """Give the settings of the services by variable, for commands that act on this system."""
        links = service_links(self.environment)
        known = [name for name, _, _ in describe() if name not in {*STORE_URLS, *links}]
        return {name: text for name in known if (text := self.environment.get(name))}

    @property
    def logs(self) -> Path:
        """The folder of the children's logs."""
        return self.options.data_dir / "logs"

    @property
    def api_url(self) -> str:
        """Where a browser on this machine finds the page."""
        settings = self.settings
        return f"http://{netloc(connect_host(settings.api_host), settings.api_port)}"

    @property
    def ws_url(self) -> str:
        """Where a viewer on this machine connects."""
        settings = self.settings
        return f"ws://{netloc(connect_host(settings.ws_host), settings.ws_port)}{WS_PATH}"

    @property
    def pages(self) -> list[str]:
        """The origins under which a browser on this machine opens the page."""
        settings = self.settings
        hosts = dict.fromkeys((connect_host(settings.api_host), "localhost", HOST))
        return [f"http://{netloc(host, settings.api_port)}" for host in hosts]

    @property
    def issuer_url(self) -> str:
        """The name and address of our own issuer; empty where none runs."""
        return self.environment["SCOREBOARD_ISSUER"] if self.issuer_port else ""

    def _refuse_half_of_it(self, given: Settings) -> None:
        """Refuse settings that would be overwritten or could not work, instead of guessing.

        Raises OperatorMistake.
        """
        if given.issuer and not given.jwks_url and not given.jwks_file:
            raise OperatorMistake(
                "SCOREBOARD_ISSUER is set without its keys: set SCOREBOARD_JWKS_URL or "
                "SCOREBOARD_JWKS_FILE, too, or unset it to use the local issuer"
            )
        if self.has_own_servers and (given.redis_secret or given.database_secret):
            raise OperatorMistake(
                "SCOREBOARD_REDIS_SECRET and SCOREBOARD_DATABASE_SECRET are for servers of yours: "
                f"set {REDIS_URL} and {DATABASE_URL}, too, or unset them to run on embedded servers"
            )

    def _name_files_in_full(self, given: Settings) -> None:
        """Name files so that commands started elsewhere find them."""
        for name in (*FILES, *(SECRET_FILES if given.secrets == "file" else ())):
            if self.environment.get(name):
                self.environment[name] = str(Path(self.environment[name]).absolute())

    def _choose_ports(self, given: Settings) -> None:
        options, environment = self.options, self.environment
        hosts = {"API_PORT": given.api_host, "WS_PORT": given.ws_host}
        ports: dict[str, int] = {}
        for name, option, default in (
            ("API_PORT", options.api_port, given.api_port or None),
            ("WS_PORT", options.ws_port, given.ws_port or None),
            ("API_METRICS_PORT", options.api_metrics_port, 0),
            ("WS_METRICS_PORT", options.ws_metrics_port, None),
            ("FLUSHER_METRICS_PORT", options.flusher_metrics_port, None),
        ):
            port = default
            if name not in hosts and environment.get(f"SCOREBOARD_{name}"):
                port = getattr(given, name.lower())
            if option is not None:
                port = None if option == 0 and name in hosts else option
            if port is None:
                port = _free_port({*ports.values(), self.issuer_port})
            if port and port in {*ports.values(), self.issuer_port}:
                raise OperatorMistake(f"Port {port} (SCOREBOARD_{name}) is taken by another part")
            check_port_free(hosts.get(name, given.metrics_host), port, f"SCOREBOARD_{name}")
            ports[name] = port
            environment[f"SCOREBOARD_{name}"] = str(port)
        environment["SCOREBOARD_WS_PUBLIC_URL"] = given.ws_public_url or self.ws_url
        # The page is not of the streamer's own host: its port is another one.
        origins = dict.fromkeys((*given.origins, *self.pages))
        environment["SCOREBOARD_ORIGINS"] = ",".join(origins)

    def _choose_issuer(self, given: Settings) -> None:
        """Name the local issuer, by its address where it will sign players in."""
        options, environment = self.options, self.environment
        name = None
        if given.environment == "development":
            api_port = given.api_port if options.api_port is None else options.api_port
            default = ISSUER_PORT if api_port else 0
            port = default if options.issuer_port is None else options.issuer_port
            self.issuer_port = port or free_port()
            check_port_free(HOST, self.issuer_port, "--issuer-port")
            name = issuer_url(HOST, self.issuer_port)
            environment["SCOREBOARD_SIGN_IN_ISSUER"] = name
            environment["SCOREBOARD_SIGN_IN_CLIENT_ID"] = PAGE.id
        issuer = LocalIssuer.create(options.data_dir / ISSUER_DIR, issuer=name)
        environment["SCOREBOARD_JWKS_FILE"] = str(issuer.jwks_file.absolute())
        environment["SCOREBOARD_ISSUER"] = issuer.issuer


def _has_own_servers() -> bool:
    """Tell whether to start servers of our own.

    Raises OperatorMistake where the environment names one of the two: a board is in both.
    """
    given = [name for name in STORE_URLS if os.environ.get(name)]
    if len(given) == 1:
        (missing,) = set(STORE_URLS) - set(given)
        raise OperatorMistake(
            f"{given[0]} is set and {missing} is not: set both to run on servers of yours, "
            "or neither to run on embedded ones"
        )
    return not given


def _free_port(taken: Collection[int]) -> int:
    while (port := free_port()) in taken:
        pass
    return port
