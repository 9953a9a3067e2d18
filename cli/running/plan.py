"""The plan of `scoreboard up`: ports, issuer and environment of the services, before any starts.

Invariants: an option overrides the environment, which overrides a default; a port in use or an
invalid setting is reported before anything is started; both stores are embedded, or the environment
names both.
"""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

from msgspec import Struct

from cli.embedded.ports import HOST, check_port_free, find_free_port
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
from scoreboard.broadcast.messages import WS_PATH
from scoreboard.errors import OperatorMistake
from scoreboard.runtime import settings as settings_module
from scoreboard.runtime.settings import Settings, describe, service_links
from scoreboard.runtime.sockets import connect_host, netloc
from scoreboard.security.tokens import LocalIssuer, LocalProver

FILES: Final = ("SCOREBOARD_JWKS_FILE", "SCOREBOARD_PROOF_JWKS_FILE")
SECRET_FILES: Final = ("SCOREBOARD_REDIS_SECRET", "SCOREBOARD_DATABASE_SECRET")


class UpOptions(Struct, frozen=True, kw_only=True):
    """The options of the command line; None means the environment's value or the default.

    Port 0 means any free port, or none for a metrics port.
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
    """The options and the environment of the services."""

    def __init__(self, options: UpOptions) -> None:
        """Decide everything except the addresses of embedded servers.

        Raises OperatorMistake, SettingInvalid, EmbeddedFailed if a port is in use.
        """
        self.options = options
        self.is_embedded = _is_embedded()
        """Whether `up` starts Valkey and PostgreSQL itself."""
        if self.is_embedded:
            unset_libpq_variables()
        links = service_links(os.environ)
        self.environment = {name: text for name, text in os.environ.items() if name not in links}
        if self.is_embedded:
            self.environment |= {REDIS_URL: REDIS_URL_UNSET, DATABASE_URL: ""}
        self.issuer_port = 0
        """The port of the local issuer; 0 if none runs."""
        given = settings_module.load(self.environment)
        self._check_consistent(given)
        self._make_paths_absolute(given)
        if not given.jwks_url and not given.jwks_file:
            self._choose_issuer(given)
        self._choose_ports(given)

    @property
    def settings(self) -> Settings:
        """The settings as the services will read them."""
        return settings_module.load(self.environment)

    @property
    def saved_settings(self) -> dict[str, str]:
        """The settings by variable that the state file provides to other commands."""
        links = service_links(self.environment)
        known = [name for name, _, _ in describe() if name not in {*STORE_URLS, *links}]
        return {name: text for name in known if (text := self.environment.get(name))}

    @property
    def logs(self) -> Path:
        """The folder of the services' logs."""
        return self.options.data_dir / "logs"

    @property
    def api_url(self) -> str:
        """The address of the page for a browser on this machine."""
        settings = self.settings
        return f"http://{netloc(connect_host(settings.api_host), settings.api_port)}"

    @property
    def ws_url(self) -> str:
        """The address of the streamer for a viewer on this machine."""
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
        """The name and address of the local issuer; empty if none runs."""
        return self.environment["SCOREBOARD_ISSUER"] if self.issuer_port else ""

    def _check_consistent(self, given: Settings) -> None:
        """Reject settings that would be overwritten or could not work.

        Raises OperatorMistake.
        """
        if given.issuer and not given.jwks_url and not given.jwks_file:
            raise OperatorMistake(
                "SCOREBOARD_ISSUER is set without its keys; also set SCOREBOARD_JWKS_URL or "
                "SCOREBOARD_JWKS_FILE, or unset it to use the local issuer"
            )
        if self.is_embedded and (given.redis_secret or given.database_secret):
            raise OperatorMistake(
                "SCOREBOARD_REDIS_SECRET and SCOREBOARD_DATABASE_SECRET need your own servers; "
                f"also set {REDIS_URL} and {DATABASE_URL}, or unset them to use embedded servers"
            )

    def _make_paths_absolute(self, given: Settings) -> None:
        """Make paths absolute, so that commands started in other folders find the files."""
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
            ("API_METRICS_PORT", options.api_metrics_port, None),
            ("WS_METRICS_PORT", options.ws_metrics_port, None),
            ("FLUSHER_METRICS_PORT", options.flusher_metrics_port, None),
        ):
            port = default
            if name not in hosts and environment.get(f"SCOREBOARD_{name}"):
                port = getattr(given, name.lower())
            if option is not None:
                port = None if option == 0 and name in hosts else option
            if port is None:
                port = _find_other_port({*ports.values(), self.issuer_port})
            if port and port in {*ports.values(), self.issuer_port}:
                raise OperatorMistake(f"Port {port} (SCOREBOARD_{name}) is used by another part")
            check_port_free(hosts.get(name, given.metrics_host), port, f"SCOREBOARD_{name}")
            ports[name] = port
            environment[f"SCOREBOARD_{name}"] = str(port)
        environment["SCOREBOARD_WS_PUBLIC_URL"] = given.ws_public_url or self.ws_url
        # The services of `up` have one login, an owner's.
        environment.setdefault("SCOREBOARD_ADMIN_API", "true")
        # The streamer has another port than the page, so the page's origin must be allowed.
        origins = dict.fromkeys((*given.origins, *self.pages))
        environment["SCOREBOARD_ORIGINS"] = ",".join(origins)

    def _choose_issuer(self, given: Settings) -> None:
        """Name the local issuer; in development its name is the address of its sign-in."""
        options, environment = self.options, self.environment
        name = None
        if given.environment == "development":
            api_port = given.api_port if options.api_port is None else options.api_port
            default = ISSUER_PORT if api_port else 0
            port = default if options.issuer_port is None else options.issuer_port
            self.issuer_port = port or find_free_port()
            check_port_free(HOST, self.issuer_port, "--issuer-port")
            name = issuer_url(HOST, self.issuer_port)
            environment["SCOREBOARD_SIGN_IN_ISSUER"] = name
            environment["SCOREBOARD_SIGN_IN_CLIENT_ID"] = PAGE.id
        issuer = LocalIssuer.create(options.data_dir / ISSUER_DIR, issuer=name)
        environment["SCOREBOARD_JWKS_FILE"] = str(issuer.jwks_file.absolute())
        environment["SCOREBOARD_ISSUER"] = issuer.issuer
        if not given.proof_jwks_url and not given.proof_jwks_file:
            prover = LocalProver.create(options.data_dir / ISSUER_DIR)
            environment["SCOREBOARD_PROOF_JWKS_FILE"] = str(prover.jwks_file.absolute())


def _is_embedded() -> bool:
    """Return whether to start embedded servers.

    Raises OperatorMistake if the environment names only one store: a board needs both.
    """
    given = [name for name in STORE_URLS if os.environ.get(name)]
    if len(given) == 1:
        (missing,) = set(STORE_URLS) - set(given)
        raise OperatorMistake(
            f"{given[0]} is set and {missing} is not; set both to use your own servers, "
            "or neither to use embedded servers"
        )
    return not given


def _find_other_port(taken: Collection[int]) -> int:
    while (port := find_free_port()) in taken:
        pass
    return port
