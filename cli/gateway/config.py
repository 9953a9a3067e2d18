"""Render the gateway's configuration: the template with keys, issuer, addresses and limits.

No I/O except in ``write_atomically`` and ``write_password``.

Invariants: equal input gives equal bytes; a configuration contains a password only if ``render``
is given one, otherwise the reference by which Kong reads it; it contains at least one key.
"""

import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import yaml
from msgspec import Struct

from cli.gateway.keys import PLAYERS, KeyRow, secret_of
from cli.gateway.kong_yaml import Entity, parse
from scoreboard.errors import OperatorMistake, SettingInvalid
from scoreboard.model import BULK_MAX
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.security.key_set import ALGORITHMS

FIRST_LINE: Final = "# Written by `scoreboard kong render`: change kong/kong.yml instead.\n"
PASSWORD_REFERENCE: Final = "{vault://env/redis-password}"  # noqa: S105 (a reference)
"""Kong reads the variable REDIS_PASSWORD at its start, so the password is not in the file."""

PUBLIC_ROUTES: Final = frozenset({"scores-leaderboard", "scores-stream", "boards", "ws-scoreboard"})
"""Routes that need no token if the board is public."""

ORIGIN_ROUTES: Final = frozenset({"scores-stream", "ws-scoreboard"})
"""Routes whose Origin scoreboard-intake checks, because CORS does not cover them."""

CORS_ROUTES: Final = frozenset(
    {"scores-update", "scores-leaderboard", "scores-users", "scores-stream", "boards"}
)
ADMIN: Final = "scoreboard-admin"
"""The service that is rendered only with targets."""

ADMIN_UPSTREAM: Final = f"{ADMIN}.upstream"

UNLIMITED: Final = 1_000_000
"""Kong has no value for no limit, and without the entry the limit of players would apply."""

_ORIGIN: Final = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?")
_TARGET: Final = re.compile(r"[A-Za-z0-9._-]+:[0-9]{1,5}")


class _Plugin(Struct):
    """The parts of a plugin's entry that are changed; other fields are passed to Kong."""

    name: str
    config: Entity
    route: str = ""
    consumer: str = ""


class _Route(Struct):
    name: str
    methods: list[str]
    plugins: list[_Plugin]


class _Service(Struct):
    name: str
    routes: list[_Route]


class _Named(Struct):
    name: str


class _Consumer(Struct):
    username: str


class _Template(Struct):
    consumers: list[_Consumer]
    upstreams: list[_Named]
    services: list[_Service]
    plugins: list[_Plugin]


class GatewayOptions(Struct, frozen=True, kw_only=True):
    """The options of an installation. Limits are per minute."""

    issuer: str
    audiences: tuple[str, ...]
    redis_url: str
    origins: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call the REST routes, in addition to ``origins``."""
    is_public: bool = False
    api_targets: tuple[str, ...] = ("api:8000",)
    streamer_targets: tuple[str, ...] = ("streamer:8001",)
    admin_targets: tuple[str, ...] = ()
    """The api that serves administrators; without it the gateway has no route to them."""
    updates_per_minute: int = 10
    trusted_updates_per_minute: int = 0
    token_life_s: int = 86_400
    has_secret: bool = False
    """Whether the login to the counters comes from a store of secrets, and not from the address."""
    username: str = ""
    """The user of that login; empty: the one of ``redis_url``."""

    @classmethod
    def of(cls, settings: Settings, **given: Any) -> "GatewayOptions":  # noqa: ANN401 (its fields)
        """Return options from the services' settings; ``given`` are the other fields."""
        return cls(
            issuer=settings.issuer,
            audiences=(settings.audience,),
            redis_url=settings.redis_url.reveal(),
            origins=settings.origins,
            updates_per_minute=settings.updates_per_minute,
            trusted_updates_per_minute=settings.trusted_updates_per_minute,
            has_secret=bool(settings.redis_secret),
            **given,
        )


def load_template(text: str) -> Entity:
    """Parse a template.

    Raises OperatorMistake if it is not a template.
    """
    document, template = parse(text, _Template, "The template")
    if PLAYERS not in {consumer.username for consumer in template.consumers}:
        raise OperatorMistake(f"The template has no consumer {PLAYERS}, which owns the keys")
    return document


def render(
    template: str,
    rows: Iterable[KeyRow],
    options: GatewayOptions,
    password: Secret | None = None,
) -> str:
    """Return the text of the configuration for Kong.

    With ``password``, the text contains it and must not be written or logged.

    Raises SettingInvalid for an unsafe or invalid option, OperatorMistake for an invalid template,
    ValueError without keys.
    """
    check_options(options)
    document = load_template(template)
    secrets = [secret_of(row) for row in sorted(rows, key=lambda row: row.kid)]
    if not secrets:
        raise ValueError("a gateway without keys would reject every token")
    next(c for c in document["consumers"] if c["username"] == PLAYERS)["jwt_secrets"] = secrets
    if not options.admin_targets:
        for kind, name in (("services", ADMIN), ("upstreams", ADMIN_UPSTREAM)):
            document[kind] = [entity for entity in document[kind] if entity["name"] != name]
    elif ADMIN_UPSTREAM not in {upstream["name"] for upstream in document["upstreams"]}:
        raise OperatorMistake(f"The template has no {ADMIN_UPSTREAM} for --admin-target")
    for upstream in document["upstreams"]:
        targets = _targets_of(upstream["name"], options)
        upstream["targets"] = [{"target": target} for target in sorted(set(targets))]
    for route in _routes(document):
        _configure_route(route, options)
    redis = _redis(options, password)
    for plugin, route_name in _plugins(document):
        _configure_plugin(plugin, route_name, options, redis)
    return FIRST_LINE + yaml.dump(
        document, Dumper=_Dumper, sort_keys=False, width=100_000, allow_unicode=False
    )


def write_atomically(path: Path, text: str) -> bool:
    """Replace a file atomically, because Kong may read it at any time.

    Return whether the text differs from the file. Raises OSError, which names ``path``.
    """
    data = text.encode()
    with suppress(FileNotFoundError):
        if path.read_bytes() == data:
            return False
    try:
        _replace(path, data, 0o644)  # it contains public keys only, and Kong runs as another user
    except OSError as error:
        if error.strerror:
            error.filename = str(path)  # instead of the temporary file
        raise
    return True


def write_password(path: Path, password: Secret) -> bool:
    """Replace the file of Kong's password atomically, keeping its group and mode; return as above.

    A new file can be read by its owner only. Raises OSError, which names ``path``.
    """
    data = password.reveal().encode()
    mode, group = 0o600, -1
    with suppress(FileNotFoundError):
        if path.read_bytes() == data:
            return False
        found = path.stat()
        mode, group = found.st_mode & 0o666, found.st_gid
    try:
        _replace(path, data, mode, group)
    except OSError as error:
        if error.strerror:
            error.filename = str(path)  # instead of the temporary file
        raise
    return True


def _replace(path: Path, data: bytes, mode: int, group: int = -1) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if group not in {-1, os.fstat(handle).st_gid}:
                os.fchown(handle, -1, group)
            os.fchmod(handle, mode)
            os.fsync(handle)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class _Dumper(yaml.SafeDumper):
    """Plain YAML without anchors, in which PEMs are readable blocks."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 (PyYAML's signature)
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _targets_of(upstream: str, options: GatewayOptions) -> tuple[str, ...]:
    if upstream == ADMIN_UPSTREAM:
        return options.admin_targets
    is_api = upstream == "scoreboard-api.upstream"
    return options.api_targets if is_api else options.streamer_targets


def _routes(document: Entity) -> Iterator[Entity]:
    for service in document["services"]:
        yield from service["routes"]


def _plugins(document: Entity) -> Iterator[tuple[Entity, str]]:
    """Yield each plugin with the name of its route, or an empty string."""
    for route in _routes(document):
        for plugin in route["plugins"]:
            yield plugin, route["name"]
    for plugin in document["plugins"]:
        yield plugin, plugin.get("route", "")


def _configure_route(route: Entity, options: GatewayOptions) -> None:
    name, plugins = route["name"], route["plugins"]
    if options.is_public and name in PUBLIC_ROUTES:
        plugins[:] = [p for p in plugins if p["name"] not in {"jwt", "scoreboard-authz"}]
        for plugin in plugins:
            if plugin["name"] == "rate-limiting":
                plugin["config"]["limit_by"] = "ip"  # there is no credential on a public route
    if options.origins and name in ORIGIN_ROUTES:
        intake = next((p for p in plugins if p["name"] == "scoreboard-intake"), None)
        if intake is None:
            intake = {"name": "scoreboard-intake", "config": {"algorithms": []}}
            plugins.insert(0, intake)
        intake["config"]["allowed_origins"] = sorted(set(options.origins))
    origins = {*options.origins, *options.cors_origins}
    if origins and name in CORS_ROUTES:
        route["methods"].append("OPTIONS")
        plugins.insert(0, {"name": "cors", "config": _cors(origins)})


def _configure_plugin(
    plugin: Entity, route_name: str, options: GatewayOptions, redis: Mapping[str, object]
) -> None:
    config = plugin["config"]
    match plugin["name"]:
        case "scoreboard-intake":
            config["algorithms"] = list(ALGORITHMS)
        case "jwt":
            config["maximum_expiration"] = options.token_life_s
        case "scoreboard-authz":
            config["issuer"] = options.issuer
            config["audiences"] = sorted(set(options.audiences))
        case "rate-limiting":
            # Other fields, such as timeouts, are those of the template.
            kept = {k: v for k, v in config.get("redis", {}).items() if k not in _ADDRESS}
            config["redis"] = {**redis, **kept}
            if plugin.get("consumer"):
                config["minute"] = options.trusted_updates_per_minute or UNLIMITED
            elif route_name == "scores-update":
                config["minute"] = options.updates_per_minute
            elif route_name == "scores-updates":
                config["minute"] = _bulks_per_minute(options.trusted_updates_per_minute)
        case _:
            pass


def _bulks_per_minute(updates_per_minute: int) -> int:
    """Return the limit of bulk requests by that of updates, 0 for none: Kong counts requests."""
    return max(1, updates_per_minute // BULK_MAX) if updates_per_minute else UNLIMITED


def _cors(origins: Iterable[str]) -> Entity:
    # Kong's plugin replaces these headers of the api's responses (decision 0200).
    return {
        "origins": sorted(set(origins)),
        "methods": ["GET", "HEAD", "POST", "OPTIONS"],
        "headers": [
            "Authorization",
            "Content-Type",
            "If-None-Match",
            "Last-Event-ID",
            "X-Request-Id",
        ],
        "exposed_headers": [
            "Allow",
            "ETag",
            "Retry-After",
            "RateLimit",
            "RateLimit-Limit",
            "RateLimit-Policy",
            "RateLimit-Remaining",
            "RateLimit-Reset",
            "WWW-Authenticate",
            "X-Kong-Request-Id",
            "X-Request-Id",
        ],
        "credentials": False,
        "max_age": 600,
        "preflight_continue": False,
    }


_ADDRESS: Final = frozenset(
    {"host", "port", "database", "username", "password", "ssl", "ssl_verify", "server_name"}
)


def is_reference(password: Secret) -> bool:
    """Return whether Kong would resolve a password as a reference to a vault."""
    text = password.reveal()
    return text.startswith("{vault://") and text.endswith("}")


def _redis(options: GatewayOptions, password: Secret | None) -> Entity:
    """Return the address of the counters for Kong, with a password or a reference to it."""
    try:
        parts = urlsplit(options.redis_url)
        database = int(parts.path.strip("/") or "0")
        host, port = parts.hostname, parts.port or 6379
    except ValueError as error:
        raise SettingInvalid("REDIS_URL is not a valid address") from error
    if parts.scheme not in {"redis", "rediss"} or not host:
        raise SettingInvalid("REDIS_URL of the gateway must be redis:// or rediss:// with a host")
    address: Entity = {"host": host, "port": port, "database": database}
    username = options.username or parts.username
    if username:
        address["username"] = username
    if password is not None:
        address["password"] = str(password.reveal())  # a plain str, which YAML needs
    elif username or parts.password or options.has_secret:
        address["password"] = PASSWORD_REFERENCE
    if parts.scheme == "rediss":
        address |= {"ssl": True, "ssl_verify": True, "server_name": host}
    return address


def check_options(options: GatewayOptions) -> None:
    """Raise SettingInvalid for an option that is invalid or would make the gateway unsafe."""
    if not options.issuer:
        raise SettingInvalid("SCOREBOARD_ISSUER is not set; tokens of any issuer would be accepted")
    if not all(options.audiences):
        raise SettingInvalid(
            "SCOREBOARD_AUDIENCE is not set; tokens of any audience would be accepted"
        )
    for origin in (*options.origins, *options.cors_origins):
        # Exact and in lower case, as browsers send it; Kong treats other forms as patterns.
        if not _ORIGIN.fullmatch(origin):
            raise SettingInvalid(f"{origin!r} is not an origin such as https://play.example")
    if not options.api_targets or not options.streamer_targets:
        raise SettingInvalid("the api and the streamer need a target")
    for target in (*options.api_targets, *options.streamer_targets, *options.admin_targets):
        if not _TARGET.fullmatch(target):
            raise SettingInvalid("a target must have the form host:port")
    if options.updates_per_minute < 1 or options.trusted_updates_per_minute < 0:
        raise SettingInvalid("a limit must be a positive number of updates per minute")
    if not 1 <= options.token_life_s <= 31_536_000:
        raise SettingInvalid("the token lifetime must be between a second and a year")
