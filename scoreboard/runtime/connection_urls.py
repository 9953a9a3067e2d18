"""Connection URLs of Redis and PostgreSQL: validation, redaction, and causes of errors. No I/O.

The settings validate both URLs before a driver parses them, because the drivers' error messages
repeat an invalid URL with its password.

Invariant: no return value and no error contains a part of a password, except ``extract_passwords``.
"""

import re
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from msgspec import Struct

from scoreboard.errors import ScoreboardError, SettingInvalid

SENTINEL_SCHEMES: Final = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
"""Schemes whose hosts are sentinels, with the one of the servers that the sentinels name."""

CLUSTER_SCHEMES: Final = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
"""Schemes whose hosts are some of a cluster's servers, with the one of each server."""

REDIS_SCHEMES: Final = ("redis", "rediss", "unix", *SENTINEL_SCHEMES, *CLUSTER_SCHEMES)
DATABASE_SCHEMES: Final = ("postgresql", "postgres")

_ENCODE: Final = "encode / ? # @ : % and spaces in a user name or password as %2F %3F %23 …"
_TLS_PARAMETERS: Final = (
    *("ssl_cert_reqs", "ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile"),
    "ssl_check_hostname",
)
"""No timeouts: those are settings, and redis-py prefers parameters of the URL."""
_SENTINEL_PARAMETERS: Final = ("sentinel_username", "sentinel_password")
REDIS_PORT: Final = 6379
SENTINEL_PORT: Final = 26379
HOSTS_MAX: Final = 16
_TLS_CHECKS: Final = ("none", "optional", "required")
_BAD_PERCENT: Final = re.compile(r"%(?:00|(?![0-9A-Fa-f]{2}))")
_DATABASE_NUMBER: Final = re.compile(r"[0-9]{1,4}")
_HOST_PORT: Final = re.compile(
    r"(?:\[(?P<address>[0-9A-Fa-f:.%]+)\]|(?P<name>[^\[\]:@]*))(?::(?P<port>\d*))?"
)
_SERVICE: Final = re.compile(r"/(?P<service>[A-Za-z0-9._-]{1,64})(?:/(?P<database>[0-9]{1,4})?)?")
_WORDS_MAX: Final = 300


def check_redis_url(text: str) -> None:
    """Raise SettingInvalid, without repeating it, if ``text`` is not a URL of Redis."""
    parts = _split("REDIS_URL", text, REDIS_SCHEMES)
    allowed = {
        "redis": (),
        "rediss": _TLS_PARAMETERS,
        "unix": ("db",),
        "redis+sentinel": _SENTINEL_PARAMETERS,
        "rediss+sentinel": (*_TLS_PARAMETERS, *_SENTINEL_PARAMETERS),
        "redis+cluster": (),
        "rediss+cluster": _TLS_PARAMETERS,
    }[parts.scheme]
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in allowed or (name == "ssl_cert_reqs" and value not in _TLS_CHECKS):
            known = f"allowed are {', '.join(allowed)}" if allowed else "this scheme allows none"
            raise _wrong("REDIS_URL", f"a parameter is unknown or invalid; {known}")
        if name == "db" and not _DATABASE_NUMBER.fullmatch(value):
            raise _wrong("REDIS_URL", "db must be the number of the database")
    if parts.scheme == "unix":
        if not parts.path.startswith("/") or parts.path == "/":
            raise _wrong("REDIS_URL", "unix:// must be followed by the absolute path of a socket")
        return
    has_many = parts.scheme in SENTINEL_SCHEMES or parts.scheme in CLUSTER_SCHEMES
    _check_hosts("REDIS_URL", parts, most=HOSTS_MAX if has_many else 1)
    rule = _path_rule(parts)
    if rule:
        raise _wrong("REDIS_URL", rule)


def _path_rule(parts: SplitResult) -> str:
    """Return the rule that the path of a URL of Redis breaks; empty if it is valid."""
    path = parts.path.removeprefix("/")
    if parts.scheme in SENTINEL_SCHEMES:
        is_valid = _SERVICE.fullmatch(parts.path) is not None
        return (
            "" if is_valid else "the sentinels must be followed by the name of the primary: /NAME"
        )
    if parts.scheme in CLUSTER_SCHEMES:
        return "nothing may follow the hosts: a cluster has one database" if path else ""
    is_valid = not path or _DATABASE_NUMBER.fullmatch(path) is not None
    return "" if is_valid else "the host may be followed by the number of the database, such as /0"


def check_database_url(text: str) -> None:
    """Raise SettingInvalid, without repeating it, if ``text`` is not a URL of PostgreSQL."""
    parts = _split("DATABASE_URL", text, DATABASE_SCHEMES)
    _check_hosts("DATABASE_URL", parts, most=HOSTS_MAX)
    if "/" in parts.path[1:]:
        raise _wrong("DATABASE_URL", f"the host must be followed by one database name; {_ENCODE}")


def redact_url(url: str) -> str:
    """Return a URL without its password and its parameters, for display."""
    check = check_redis_url if url.startswith(REDIS_SCHEMES) else check_database_url
    try:
        check(url)
    except SettingInvalid:
        return "an invalid URL"
    parts = urlsplit(url)
    user, _, hosts = parts.netloc.rpartition("@")
    name = user.partition(":")[0]
    return f"{parts.scheme}://{name + '@' if name else ''}{hosts}{parts.path}"


class SentinelAddress(Struct, frozen=True):
    """The parts of a URL that names sentinels.

    ``node_url`` is a URL of the servers with a host in place of theirs. ``login`` are user name and
    password of the sentinels, empty without.
    """

    node_url: str
    hosts: tuple[tuple[str, int], ...]
    service: str
    login: tuple[str, str]

    def __repr__(self) -> str:
        """Return no password."""
        return f"SentinelAddress({self.service})"


def parse_sentinel_url(text: str) -> SentinelAddress | None:
    """Return the parts of a valid URL of sentinels; None for another URL of Redis."""
    parts = urlsplit(text)
    scheme = SENTINEL_SCHEMES.get(parts.scheme)
    if scheme is None:
        return None
    user, at, listed = parts.netloc.rpartition("@")
    hosts = _hosts_of(listed, SENTINEL_PORT)
    place = _SERVICE.fullmatch(parts.path)
    # A plus sign in a password is meant as one, as before the host.
    given = dict(parse_qsl(parts.query.replace("+", "%2B"), keep_blank_values=True))
    login = tuple(given.pop(name, "") for name in _SENTINEL_PARAMETERS)
    service, database = (place["service"], place["database"] or "0") if place else ("", "0")
    query = f"?{urlencode(given)}" if given else ""
    node_url = f"{scheme}://{user}{at}localhost/{database}{query}"
    return SentinelAddress(node_url, hosts, service, (login[0], login[1]))


class ClusterAddress(Struct, frozen=True):
    """The parts of a URL that names servers of a cluster; ``node_url`` is the one of any of them.

    The host in ``node_url`` takes the place of theirs.
    """

    node_url: str
    hosts: tuple[tuple[str, int], ...]

    def __repr__(self) -> str:
        """Return no password."""
        return f"ClusterAddress({self.hosts})"

    def url_of(self, host: str, port: int) -> str:
        """Return the URL of one server, with the login of this one."""
        parts = urlsplit(self.node_url)
        user, at, _ = parts.netloc.rpartition("@")
        name = f"[{host}]" if ":" in host else host
        return urlunsplit(parts._replace(netloc=f"{user}{at}{name}:{port}"))


def parse_cluster_url(text: str) -> ClusterAddress | None:
    """Return the parts of a valid URL of a cluster; None for another URL of Redis."""
    parts = urlsplit(text)
    scheme = CLUSTER_SCHEMES.get(parts.scheme)
    if scheme is None:
        return None
    user, at, listed = parts.netloc.rpartition("@")
    query = f"?{parts.query}" if parts.query else ""
    return ClusterAddress(f"{scheme}://{user}{at}localhost/0{query}", _hosts_of(listed, REDIS_PORT))


def _hosts_of(listed: str, port: int) -> tuple[tuple[str, int], ...]:
    """Return hosts and ports of a checked list; ``port`` where none is named."""
    found = (_HOST_PORT.fullmatch(one) for one in listed.split(","))
    return tuple(
        (one["address"] or one["name"] or "localhost", int(one["port"] or port))
        for one in found
        if one is not None
    )


def driver_error(error: ScoreboardError) -> BaseException | None:
    """Return the driver's error that caused one of ours; None without one."""
    cause = error.__cause__
    while cause is not None and isinstance(cause, ScoreboardError):
        cause = cause.__cause__
    return cause


def error_text(error: BaseException) -> str:
    """Return the message of an error, as one line of bounded length."""
    # The primary message of PostgreSQL, if any, without the position in the statement.
    diagnosis = getattr(error, "diag", None)
    text = getattr(diagnosis, "message_primary", None) or str(error)
    words = " ".join(text.split()).rstrip(".") or type(error).__name__
    return words if len(words) <= _WORDS_MAX else words[: _WORDS_MAX - 1] + "…"


def extract_passwords(*urls: str) -> list[str]:
    """Return the passwords of URLs, encoded and decoded, also of invalid URLs."""
    found: set[str] = set()
    for url in urls:
        rest = url.partition("://")[2] or url
        user = rest.rpartition("@")[0]
        password = user.partition(":")[2]
        found |= {password, unquote(password)} - {""}
        for parameter in rest.partition("?")[2].split("&"):
            name, _, text = parameter.partition("=")
            if "password" in unquote(name).lower():
                found |= {text, unquote(text)} - {""}
    return sorted(found, key=len, reverse=True)


def _split(variable: str, text: str, schemes: tuple[str, ...]) -> SplitResult:
    try:
        parts = urlsplit(text)
    except ValueError:
        raise _wrong(variable, _ENCODE) from None
    if parts.scheme not in schemes or not text.startswith(f"{parts.scheme}://"):
        raise _wrong(
            variable, f"it must begin with {' or '.join(f'{name}://' for name in schemes)}"
        )
    if "#" in text or _BAD_PERCENT.search(text) or any(not " " < one < "\x7f" for one in text):
        raise _wrong(variable, _ENCODE)
    return parts


def _check_hosts(variable: str, parts: SplitResult, *, most: int) -> None:
    user, _, hosts = parts.netloc.rpartition("@")
    if "@" in user or user.count(":") > 1:
        raise _wrong(variable, _ENCODE)
    listed = hosts.split(",")
    if len(listed) > most:
        raise _wrong(variable, f"it may name at most {most} host{'s' if most > 1 else ''}")
    for one in listed:
        match = _HOST_PORT.fullmatch(one)
        if match is None or (match["port"] and not 1 <= int(match["port"][:9]) <= 65535):
            raise _wrong(variable, f"a port must be a number from 1 to 65535; {_ENCODE}")


def _wrong(variable: str, rule: str) -> SettingInvalid:
    kind = "Redis" if variable == "REDIS_URL" else "PostgreSQL"
    return SettingInvalid(f"{variable} is not a URL of {kind}: {rule}")
