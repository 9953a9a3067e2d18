"""Makes the gateway's configuration: the template, with keys, issuer, addresses and limits.

Pure but for ``write_atomically``; called by cli.commands.kong and cli.gateway.sync. What stays
true: the same input gives the same bytes; no secret is ever written, only the reference by which
Kong finds it; no configuration without a key leaves here.
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
from scoreboard.runtime.settings import Settings
from scoreboard.security.key_set import ALGORITHMS

FIRST_LINE: Final = "# Written by `scoreboard kong render`: change kong/kong.yml instead.\n"
PASSWORD_REFERENCE: Final = "{vault://env/redis-password}"  # noqa: S105 (a reference)
"""Kong reads REDIS_PASSWORD by itself; the password never stands in a file."""

PUBLIC_ROUTES: Final = frozenset({"scores-leaderboard", "scores-stream", "ws-scoreboard"})
"""Routes that need no token where the board is public: architecture's table of HTTP."""

ORIGIN_ROUTES: Final = frozenset({"scores-stream", "ws-scoreboard"})
"""Routes that judge Origin themselves, because CORS does not cover them."""

CORS_ROUTES: Final = frozenset(
    {"scores-update", "scores-leaderboard", "scores-users", "scores-stream"}
)
AS_GOOD_AS_NONE: Final = 1_000_000
"""No limit is no word of Kong's, and without the entry a player's limit would apply."""

_ORIGIN: Final = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?")
_TARGET: Final = re.compile(r"[A-Za-z0-9._-]+:[0-9]{1,5}")


class _Plugin(Struct):
    """The parts of a template that render changes; whatever else stands there is Kong's."""

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
    """What differs from one installation to the next. Limits are per minute."""

    issuer: str
    audiences: tuple[str, ...]
    redis_url: str
    origins: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    is_public: bool = False
    api_targets: tuple[str, ...] = ("api:8000",)
    streamer_targets: tuple[str, ...] = ("streamer:8001",)
    updates_per_minute: int = 10
    trusted_updates_per_minute: int = 0
    token_life_s: int = 86_400

    @classmethod
    def of(cls, settings: Settings, **given: Any) -> "GatewayOptions":  # noqa: ANN401 (its fields)
        """Take from the services' settings what the gateway must agree with them about."""
        return cls(
            issuer=settings.issuer,
            audiences=(settings.audience,),
            redis_url=settings.redis_url.reveal(),
            origins=settings.origins,
            updates_per_minute=settings.updates_per_minute,
            trusted_updates_per_minute=settings.trusted_updates_per_minute,
            **given,
        )


def load_template(text: str) -> Entity:
    """Read a template.

    Raises OperatorMistake where it is not one.
    """
    document, template = parse(text, _Template, "The template")
    if PLAYERS not in {consumer.username for consumer in template.consumers}:
        raise OperatorMistake(f"The template has no consumer {PLAYERS}, who owns the keys")
    return document


def render(template: str, rows: Iterable[KeyRow], options: GatewayOptions) -> str:
    """Give the text of the configuration for Kong.

    Raises SettingInvalid for an option that would open the gate or not load, OperatorMistake for a
    template that is none, ValueError without keys.
    """
    check(options)
    document = load_template(template)
    secrets = [secret_of(row) for row in sorted(rows, key=lambda row: row.kid)]
    if not secrets:
        raise ValueError("a gateway without keys would refuse everybody")
    next(c for c in document["consumers"] if c["username"] == PLAYERS)["jwt_secrets"] = secrets
    for upstream in document["upstreams"]:
        is_api = upstream["name"] == "scoreboard-api.upstream"
        targets = options.api_targets if is_api else options.streamer_targets
        upstream["targets"] = [{"target": target} for target in sorted(set(targets))]
    for route in _routes(document):
        _fit_route(route, options)
    redis = _redis(options.redis_url)
    for plugin, route_name in _plugins(document):
        _fit_plugin(plugin, route_name, options, redis)
    return FIRST_LINE + yaml.dump(
        document, Dumper=_Dumper, sort_keys=False, width=100_000, allow_unicode=False
    )


def write_atomically(path: Path, text: str) -> bool:
    """Put a text in place of a file at once; tell whether it differed. Kong may read any time."""
    data = text.encode()
    with suppress(FileNotFoundError):
        if path.read_bytes() == data:
            return False
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(aside).chmod(0o644)  # public keys only; Kong runs as another user
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    return True


class _Dumper(yaml.SafeDumper):
    """Plain YAML: no anchors, and PEMs as blocks that people can read."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 (PyYAML's signature)
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _routes(document: Entity) -> Iterator[Entity]:
    for service in document["services"]:
        yield from service["routes"]


def _plugins(document: Entity) -> Iterator[tuple[Entity, str]]:
    """Give each plugin with the name of its route, or the empty string."""
    for route in _routes(document):
        for plugin in route["plugins"]:
            yield plugin, route["name"]
    for plugin in document["plugins"]:
        yield plugin, plugin.get("route", "")


def _fit_route(route: Entity, options: GatewayOptions) -> None:
    name, plugins = route["name"], route["plugins"]
    if options.is_public and name in PUBLIC_ROUTES:
        plugins[:] = [p for p in plugins if p["name"] not in {"jwt", "scoreboard-authz"}]
        for plugin in plugins:
            if plugin["name"] == "rate-limiting":
                plugin["config"]["limit_by"] = "ip"  # by intent: there is no credential
    if options.origins and name in ORIGIN_ROUTES:
        intake = next((p for p in plugins if p["name"] == "scoreboard-intake"), None)
        if intake is None:
            intake = {"name": "scoreboard-intake", "config": {"algorithms": []}}
            plugins.insert(0, intake)
        intake["config"]["allowed_origins"] = sorted(set(options.origins))
    if options.cors_origins and name in CORS_ROUTES:
        route["methods"].append("OPTIONS")
        plugins.insert(0, {"name": "cors", "config": _cors(options.cors_origins)})


def _fit_plugin(
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
            # Time-outs and such stay the template's.
            kept = {k: v for k, v in config.get("redis", {}).items() if k not in _ADDRESS}
            config["redis"] = {**redis, **kept}
            if plugin.get("consumer"):
                config["minute"] = options.trusted_updates_per_minute or AS_GOOD_AS_NONE
            elif route_name == "scores-update":
                config["minute"] = options.updates_per_minute
        case _:
            pass


def _cors(origins: Iterable[str]) -> Entity:
    return {
        "origins": sorted(set(origins)),
        "methods": ["GET", "HEAD", "POST", "OPTIONS"],
        "headers": ["Authorization", "Content-Type", "If-None-Match", "Last-Event-ID"],
        "exposed_headers": [
            "ETag",
            "Retry-After",
            "RateLimit-Limit",
            "RateLimit-Remaining",
            "RateLimit-Reset",
            "X-Kong-Request-Id",
        ],
        "credentials": False,
        "max_age": 600,
        "preflight_continue": False,
    }


_ADDRESS: Final = frozenset(
    {"host", "port", "database", "username", "password", "ssl", "ssl_verify", "server_name"}
)


def _redis(url: str) -> Entity:
    """Give Kong's address of the counters; a password is always a reference."""
    try:
        parts = urlsplit(url)
        database = int(parts.path.strip("/") or "0")
        host, port = parts.hostname, parts.port or 6379
    except ValueError as error:
        raise SettingInvalid("REDIS_URL cannot be read") from error
    if parts.scheme not in {"redis", "rediss"} or not host:
        raise SettingInvalid("REDIS_URL of the gateway must be redis:// or rediss:// with a host")
    address: Entity = {"host": host, "port": port, "database": database}
    if parts.username:
        address["username"] = parts.username
    if parts.username or parts.password:
        address["password"] = PASSWORD_REFERENCE
    if parts.scheme == "rediss":
        address |= {"ssl": True, "ssl_verify": True, "server_name": host}
    return address


def check(options: GatewayOptions) -> None:
    """Raise SettingInvalid for an option that would open the gate or not load."""
    if not options.issuer:
        raise SettingInvalid("SCOREBOARD_ISSUER is not set: any issuer's tokens would fit")
    if not all(options.audiences):
        raise SettingInvalid("SCOREBOARD_AUDIENCE is not set: tokens for others would fit")
    for origin in (*options.origins, *options.cors_origins):
        # Exact, in lower case: browsers send no other form, and Kong takes odd ones for patterns.
        if not _ORIGIN.fullmatch(origin):
            raise SettingInvalid(f"{origin!r} is no origin such as https://play.example")
    for targets in (options.api_targets, options.streamer_targets):
        if not targets or not all(_TARGET.fullmatch(target) for target in targets):
            raise SettingInvalid("a target is host:port")
    if options.updates_per_minute < 1 or options.trusted_updates_per_minute < 0:
        raise SettingInvalid("a limit is a positive number of updates per minute")
    if not 1 <= options.token_life_s <= 31_536_000:
        raise SettingInvalid("the longest token life is between a second and a year")
