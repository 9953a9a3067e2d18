"""Runs the gateway's plugins in LuaJIT, with the fake of Kong in fake_pdk.lua.

A runtime is used for one test, because handlers read globals when they are loaded. Lua strings are
bytes; Python converts them as latin-1, so that any bytes can be used.
"""

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lupa import luajit21

NOW = 1_800_000_000
ISSUER = "https://issuer.example/"
AUDIENCE = "scoreboard"
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PLUGINS = ROOT / "kong" / "plugins"
SIGNATURE = "c2ln" + "A" * 82  # the fake jwt plugin accepts signatures with this prefix
KEYS = {"k1": "RS256", "e1": "ES256"}

LOG_PLUGINS = ("prometheus", "file-log")

Headers = Sequence[tuple[str, str]]


def encode_part(value: object) -> str:
    """Return the base64url of a value as JSON, or of a text."""
    raw = value.encode("latin-1") if isinstance(value, str) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def token(
    claims: Mapping[str, object] | str | None = None,
    header: Mapping[str, object] | str | None = None,
    signature: str = SIGNATURE,
    **changes: object,
) -> str:
    """Return a token with valid claims and changes; a claim changed to ... is left out."""
    if claims is None:
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "alice",
            "exp": NOW + 300,
            "scope": "update:score read:leaderboard",
        }
    if not isinstance(claims, str):
        claims = {k: v for k, v in {**claims, **changes}.items() if v is not ...}
    if header is None:
        header = {"alg": "RS256", "kid": "k1", "typ": "JWT"}
    return f"{encode_part(header)}.{encode_part(claims)}.{signature}"


def bearer(jwt: str) -> tuple[str, str]:
    """Return the Authorization header of a token."""
    return ("Authorization", f"Bearer {jwt}")


@dataclass
class Outcome:
    """The result of a request: the response, and what the service would have received."""

    status: int
    headers: dict[str, str]
    body: str
    ran: list[str]
    is_forwarded: bool
    sent: list[tuple[str, str]]
    errors: list[str]
    credential: dict[str, Any] | None
    consumer: dict[str, Any] | None
    logged: dict[str, Any]
    series: str | None
    authenticated: int
    variables: dict[str, str]

    @property
    def problem(self) -> dict[str, Any]:
        """Return the body as JSON."""
        return json.loads(self.body)

    def sent_values(self, name: str) -> list[str]:
        """Return the values that the service receives for a name, without case."""
        return [value for key, value in self.sent if key.lower() == name.lower()]


@dataclass
class Entry:
    """A plugin of the chain with its configurations, most specific first (None: no consumer)."""

    name: str
    configs: list[tuple[str | None, dict[str, Any]]] = field(default_factory=list)


class Gateway:
    """A new Lua runtime with the two handlers and schemas loaded from their files."""

    def __init__(self) -> None:
        self.lua_error = luajit21.LuaError
        self.lua = luajit21.LuaRuntime(encoding=None, unpack_returned_tuples=True)
        names = self.lua.globals()
        names[b"python_json_decode"] = self._json_decode
        names[b"python_json_encode"] = self._json_encode
        names[b"python_base64url"] = _decode_base64url
        names[b"pdk_rules"] = self.lua.execute((HERE / "pdk_rules.lua").read_bytes())
        self.lua.execute((HERE / "fake_pdk.lua").read_bytes())
        self._null = names[b"null"]
        self._bundled = names[b"bundled"]
        self._run_chain: Callable[..., Any] = names[b"run_chain"]
        self.handlers = {name: self._load(name, "handler") for name in our_plugins()}
        self.schemas = {name: self.plain(self._load(name, "schema")) for name in our_plugins()}

    def _load(self, plugin: str, part: str) -> Any:
        return self.lua.execute((PLUGINS / plugin / f"{part}.lua").read_bytes())

    def priority(self, name: str) -> int:
        """Return the PRIORITY of a plugin of this project."""
        return int(self.handlers[name][b"PRIORITY"])

    def version(self, name: str) -> str:
        """Return the VERSION of a plugin of this project."""
        return self.handlers[name][b"VERSION"].decode()

    def config(self, plugin: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Check a configuration against the plugin's schema, as Kong does; add the defaults."""
        return checked_config(self.schemas[plugin], given)

    def send(
        self,
        entries: Iterable[Entry],
        headers: Headers = (),
        *,
        verified_token: str | None = None,
        consumer: str | None = None,
        consumers: Sequence[str] = ("players", "game-servers"),
        service: tuple[int, Mapping[str, str], str] = (200, {}, '{"success":true}'),
        method: str = "POST",
        path: str = "/api/scores/update",
        query: str = "",
        body: str = "",
        route: str | None = "scores-update",
        source: str | None = None,
    ) -> Outcome:
        """Send one request through plugins, in the order of their PRIORITY.

        The log plugins are always included, because they read what these plugins set.
        """
        chain = []
        for entry in (*entries, *(Entry(name, [(None, {})]) for name in LOG_PLUGINS)):
            handler = self.handlers.get(entry.name) or self._bundled[entry.name.encode()]
            configs = [{"conf": conf, "consumer": who} for who, conf in entry.configs]
            chain.append({"name": entry.name, "handler": handler, "configs": configs})
        known = {name: {"id": f"id-of-{name}", "username": name} for name in consumers}
        status, service_headers, text = service
        options = {
            "now": NOW,
            "keys": KEYS,
            "consumers": known,
            "consumer": known.get(consumer or ""),
            "route": route,
            "verified_token": verified_token,
            "source": source,
            "service_response": {
                "status": status,
                "source": "service",
                "headers": {name.lower(): value for name, value in service_headers.items()},
                "body": text,
            },
        }
        request = {
            "headers": [list(h) for h in headers],
            "method": method,
            "path": path,
            "query": query,
            "body": body,
        }
        result = self._run_chain(self.table(request), self.table(chain), self.table(options))
        plain = self.plain(result)
        return Outcome(
            status=plain["status"],
            headers=plain.get("headers") or {},
            body=plain.get("body") or "",
            ran=plain.get("ran") or [],
            is_forwarded=plain["reached"],
            sent=[(name, value) for name, value in plain.get("sent") or []],
            errors=plain.get("errors") or [],
            credential=plain.get("credential"),
            consumer=plain.get("consumer"),
            logged=json.loads(plain["line"]),
            series=plain.get("series"),
            authenticated=plain["authenticated"],
            variables=plain.get("variables") or {},
        )

    def table(self, value: Any) -> Any:
        """Convert a Python value to Lua."""
        if isinstance(value, str):
            return value.encode("latin-1")
        if isinstance(value, Mapping):
            pairs = {self.table(k): self.table(v) for k, v in value.items() if v is not None}
            return self.lua.table_from(pairs)
        if isinstance(value, (list, tuple)):
            return self.lua.table_from([self.table(item) for item in value])
        return value

    def plain(self, value: Any) -> Any:
        """Convert a Lua value to Python."""
        if isinstance(value, bytes):
            return value.decode("latin-1")
        if luajit21.lua_type(value) == "table":
            pairs = {self.plain(k): self.plain(v) for k, v in value.items()}
            if pairs and all(isinstance(key, int) for key in pairs):
                return [pairs[key] for key in sorted(pairs)]
            return pairs
        return value

    def _json_decode(self, text: bytes) -> Any:
        try:
            return self._lua_json(json.loads(text))
        except (ValueError, RecursionError):
            return None

    def _lua_json(self, value: Any) -> Any:
        if value is None:
            return self._null
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, dict):
            return self.lua.table_from({k.encode(): self._lua_json(v) for k, v in value.items()})
        if isinstance(value, list):
            return self.lua.table_from([self._lua_json(item) for item in value])
        return value

    def _json_encode(self, value: Any) -> bytes:
        return json.dumps(self.plain(value)).encode()


def our_plugins() -> list[str]:
    """Return the names of the plugins of this project."""
    return sorted(folder.name for folder in PLUGINS.iterdir() if folder.is_dir())


def _decode_base64url(text: bytes) -> bytes | None:
    if text.strip(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"):
        return None
    try:
        return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    except binascii.Error:
        return None


_LUA_TYPES = {"string": str, "integer": int, "array": list, "boolean": bool, "number": (int, float)}


def _config_fields(schema: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: rule for field in schema["fields"] for name, rule in field.items()}
    return {name: rule for f in fields["config"]["fields"] for name, rule in f.items()}


def checked_config(schema: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Check a configuration with the rules of Kong that the schemas use. Raises ValueError."""
    rules = _config_fields(schema)
    unknown = set(given) - set(rules)
    if unknown:
        raise ValueError(f"{schema['name']}: unknown {sorted(unknown)}")
    config: dict[str, Any] = {}
    for name, rule in rules.items():
        value = given.get(name, rule.get("default"))
        if value is None:
            if rule.get("required"):
                raise ValueError(f"{schema['name']}: {name} is required")
            continue
        _check(f"{schema['name']}.{name}", rule, value)
        config[name] = value
    return config


def _check(where: str, rule: Mapping[str, Any], value: Any) -> None:
    if not isinstance(value, _LUA_TYPES[rule["type"]]):
        raise ValueError(f"{where}: {value!r} is not a {rule['type']}")  # noqa: TRY004 (as Kong)
    if "one_of" in rule and value not in rule["one_of"]:
        raise ValueError(f"{where}: {value!r} is not one of {rule['one_of']}")
    if "between" in rule and not rule["between"][0] <= value <= rule["between"][1]:
        raise ValueError(f"{where}: {value!r} is not between {rule['between']}")
    if "len_min" in rule and len(value) < rule["len_min"]:
        raise ValueError(f"{where}: too short")
    for item in value if "elements" in rule else ():
        _check(where, rule["elements"], item)
