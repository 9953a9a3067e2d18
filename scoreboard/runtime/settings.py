"""Typed settings, from environment variables. Nothing is read at import.

``load`` returns the frozen ``Settings``. Every field is set by ``SCOREBOARD_<NAME>``, except
``REDIS_URL`` and ``DATABASE_URL``. An unknown ``SCOREBOARD_*`` is an error, so that a misspelled
variable does not fall back to a default. The variables that Kubernetes sets for a Service of that
name are ignored. ``.env.example`` is generated from the descriptions here (``make env``).
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from scoreboard.errors import SettingInvalid
from scoreboard.model import DEFAULT_BOARD, END, BoardName
from scoreboard.runtime.connection_urls import check_database_url, check_redis_url
from scoreboard.runtime.limits import HEAD_BYTES, HEAD_FIELDS, REQUEST_LINE_BYTES, HeadLimits
from scoreboard.violations import describe_violation

PREFIX = "SCOREBOARD_"
UNPREFIXED = {"redis_url": "REDIS_URL", "database_url": "DATABASE_URL"}

DEPRECATED: dict[str, str] = {}
"""Settings that the next release removes, with what to do instead. They stay valid for one release,
in which each start warns of them: a setting that was removed stops a service."""

_IP = r"(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9a-fA-F]*:[0-9a-fA-F:.]+)"
_LINK = re.compile(
    r"SCOREBOARD(?:_[A-Z0-9_]+?)??_(?:(?P<host>SERVICE_HOST)|(?P<port>SERVICE_PORT(?:_[A-Z0-9_]+)?)"
    r"|(?P<url>PORT(?:_\d+_(?:TCP|UDP|SCTP))?)|PORT_\d+_(?:TCP|UDP|SCTP)_(?:(?P<addr>ADDR)"
    r"|(?P<number>PORT)|(?P<proto>PROTO)))"
)
_LINK_VALUES = {
    "host": re.compile(_IP),
    "port": re.compile(r"\d{1,5}"),
    "url": re.compile(rf"(?:tcp|udp|sctp)://(?:{_IP}|\[{_IP}\]):\d{{1,5}}"),
    "addr": re.compile(_IP),
    "number": re.compile(r"\d{1,5}"),
    "proto": re.compile(r"tcp|udp|sctp"),
}
"""The form of the values that Kubernetes sets in each of these variables."""

Port = Annotated[int, Meta(ge=0, le=65535)]
PositiveInt = Annotated[int, Meta(ge=1)]
WholeInt = Annotated[int, Meta(ge=0)]
LingerInt = Annotated[int, Meta(ge=0, le=10_000)]
"""Below the time after which another flusher takes over a partition."""
Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]
"""At most a year, which every clock and driver supports."""

Rate = Annotated[float, Meta(gt=0, le=31_536_000)]


class _Revealed(str):
    """Text whose repr hides it, for the local variables of a traceback."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class Secret:
    """Text that its repr hides; ``reveal`` returns it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = _Revealed(text)

    def reveal(self) -> str:
        """Return the text; never log it or pass it as a process argument."""
        return self._text

    def __repr__(self) -> str:
        return "Secret('***')" if self._text else "Secret('')"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


def _description(text: str) -> Meta:
    return Meta(description=text)


class Settings(Struct, frozen=True, kw_only=True):
    """All settings. Times are in seconds and sizes in bytes, unless the name has another unit."""

    redis_url: Annotated[
        Secret,
        _description(
            "URL of Redis or Valkey, redis:// or rediss://, or redis+sentinel://HOST,HOST,HOST/NAME"
            ", or redis+cluster://HOST,HOST,HOST; may contain a password"
        ),
    ]
    database_url: Annotated[
        Secret, _description("URL of PostgreSQL, postgresql://; may contain a password")
    ] = Secret("")

    # Addresses
    api_host: Annotated[str, _description("Address the api listens on")] = "127.0.0.1"
    api_port: Annotated[Port, _description("Port of the api")] = 8000
    api_workers: Annotated[PositiveInt, _description("Worker processes of the api")] = 1
    api_metrics_port: Annotated[Port, _description("Metrics of the api; 0 for none")] = 9100
    ws_host: Annotated[str, _description("Address the streamer listens on")] = "127.0.0.1"
    ws_port: Annotated[Port, _description("Port of the streamer")] = 8001
    ws_workers: Annotated[PositiveInt, _description("Streamer processes, sharing the port")] = 1
    ws_metrics_port: Annotated[
        Port,
        _description(
            "Metrics and health of the streamer; worker n uses this port plus 10 n; 0 for none"
        ),
    ] = 9101
    flusher_metrics_port: Annotated[
        Port, _description("Metrics and health of the flusher; 0 for none")
    ] = 9102
    metrics_host: Annotated[str, _description("Address the metrics ports listen on")] = "127.0.0.1"
    ws_public_url: Annotated[
        str,
        _description("URL of the streamer for the page (ws:// or wss://); empty: same host"),
    ] = ""

    # The board
    boards: Annotated[
        tuple[BoardName, ...],
        Meta(min_length=1),
        _description(
            "Default boards, separated by commas: always served, and the first is the board of "
            "requests that name none; `scoreboard board create` makes others"
        ),
    ] = (DEFAULT_BOARD,)
    stream_cap: Annotated[
        PositiveInt,
        _description("Maximum actions per partition that wait for PostgreSQL; above it, 503 busy"),
    ] = 1_000_000
    unknown_kinds: Annotated[
        Literal["refuse", "default"],
        _description(
            "Actions whose kind is not in the catalogue: refuse them, or count "
            "SCOREBOARD_DEFAULT_POINTS"
        ),
    ] = "refuse"
    default_points: Annotated[
        WholeInt,
        _description("Points of an action whose actionId has no kind; 0: such actions are refused"),
    ] = 10

    # Tokens
    jwks_url: Annotated[str, _description("URL of the token issuer's key set")] = ""
    jwks_file: Annotated[str, _description("File with the token issuer's key set")] = ""
    issuer: Annotated[str, _description("Required `iss` of tokens")] = ""
    audience: Annotated[str, _description("Required `aud` of tokens")] = "scoreboard"
    token_leeway_s: Annotated[WholeInt, _description("Allowed clock skew of exp and nbf")] = 30
    token_cache: Annotated[
        PositiveInt,
        _description("Verified tokens that a process remembers, about 300 bytes each"),
    ] = 100_000
    proof_jwks_url: Annotated[
        str,
        _description("URL of the key set of game servers that sign proofs of actions; empty: none"),
    ] = ""
    proof_jwks_file: Annotated[str, _description("File with the same key set")] = ""
    proof_life_s: Annotated[
        Annotated[int, Meta(ge=1, le=600)],
        _description("Longest time from now until a proof's exp, besides the clock skew"),
    ] = 600
    sign_in_issuer: Annotated[
        str, _description("Issuer with which the page signs players in; empty: no sign-in")
    ] = ""
    sign_in_client_id: Annotated[str, _description("Client id of the page at that issuer")] = ""
    admin_sign_in_client_id: Annotated[
        str,
        _description(
            "Client id of the administrator's page at that issuer; empty: that of the live page"
        ),
    ] = ""

    # Limits
    rate_limit: Annotated[
        Literal["app", "gateway"],
        _description("Where updates are limited: in the api (app) or in the gateway (gateway)"),
    ] = "app"
    updates_per_minute: Annotated[
        PositiveInt, _description("Maximum updates per user in a sliding minute")
    ] = 10
    trusted_updates_per_minute: Annotated[
        WholeInt, _description("The same with update:score:any, per token subject; 0: no limit")
    ] = 0
    connections: Annotated[
        PositiveInt,
        _description(
            "Maximum connections of one api process; at the limit, a new connection closes the "
            "longest idle one"
        ),
    ] = 4096
    connections_per_address: Annotated[
        PositiveInt,
        _description(
            "The same limit per IP address, except for trusted proxies; keep it below "
            "SCOREBOARD_REQUESTS_IN_FLIGHT, so that one address cannot use all of them"
        ),
    ] = 256
    requests_in_flight: Annotated[
        PositiveInt, _description("Maximum requests in flight per api process")
    ] = 512
    head_bytes: Annotated[
        PositiveInt,
        _description("Maximum size of request line and headers, of the api and the streamer"),
    ] = HEAD_BYTES
    head_fields: Annotated[PositiveInt, _description("Maximum number of headers of a request")] = (
        HEAD_FIELDS
    )
    request_line_bytes: Annotated[
        PositiveInt, _description("Maximum length of the request line")
    ] = REQUEST_LINE_BYTES
    body_bytes: Annotated[PositiveInt, _description("Maximum size of a request body")] = 16_384
    body_timeout_s: Annotated[
        Seconds, _description("Time to send the head of a request, and again for its body")
    ] = 5.0
    request_timeout_s: Annotated[Seconds, _description("Time for a whole request")] = 10.0

    # Viewers
    frame_interval_ms: Annotated[
        PositiveInt,
        _description("Average interval between two boards while a board changes continuously"),
    ] = 100
    heartbeat_s: Annotated[
        Seconds, _description("Interval of heartbeats while a board does not change")
    ] = 15.0
    ping_s: Annotated[Seconds, _description("Time between pings to a viewer")] = 25.0
    pong_timeout_s: Annotated[Seconds, _description("Time a viewer has to answer a ping")] = 10.0
    viewers: Annotated[PositiveInt, _description("Maximum viewers of one streamer process")] = (
        20_000
    )
    handshakes: Annotated[
        PositiveInt,
        _description(
            "Maximum handshakes in progress per streamer process; at the limit, a new connection "
            "closes the oldest"
        ),
    ] = 1000
    viewers_per_address: Annotated[
        PositiveInt,
        _description(
            "Maximum viewers from one IP address; the limit of its connection attempts per "
            "minute is six times as high"
        ),
    ] = 100
    viewers_per_subject: Annotated[
        PositiveInt, _description("Maximum viewers per token subject")
    ] = 10
    new_viewers_per_second: Annotated[
        PositiveInt, _description("Maximum rate of new viewers per process")
    ] = 300
    new_viewers_burst: Annotated[
        PositiveInt, _description("Maximum burst of new viewers per process")
    ] = 600
    watched_boards: Annotated[
        PositiveInt,
        _description(
            "Maximum boards, besides SCOREBOARD_BOARDS, that a streamer or api process watches "
            "for viewers"
        ),
    ] = 1000
    windows: Annotated[
        PositiveInt,
        _description(
            "Maximum windows, other than the top 10 of a board, that a streamer process reads for "
            "viewers, each at most once a second; at the limit, a window without viewers makes room"
        ),
    ] = 200
    windows_per_board: Annotated[
        PositiveInt, _description("The same limit for the windows of one board")
    ] = 50
    watched_users: Annotated[
        WholeInt,
        _description(
            "Maximum users, of all boards, whose places a streamer process reads for viewers; "
            "half of them are kept for viewers' own; 0: none"
        ),
    ] = 10_000
    viewer_age_s: Annotated[
        Seconds, _description("Age at which a viewer is asked to reconnect; random, ±25 %")
    ] = 14_400.0
    slow_viewer_s: Annotated[
        Seconds, _description("Time without accepting data after which a viewer is disconnected")
    ] = 10.0
    token_warning_s: Annotated[
        Seconds, _description("Time between the warning and a token's expiry")
    ] = 30.0
    token_grace_s: Annotated[Seconds, _description("Time to renew a token after its expiry")] = 25.0
    expired_per_minute: Annotated[
        PositiveInt,
        _description("Handshakes with an expired token per address that end with 4401, not 401"),
    ] = 20
    handshake_timeout_s: Annotated[Seconds, _description("Time for a viewer's whole handshake")] = (
        5.0
    )
    message_bytes: Annotated[
        PositiveInt, _description("Maximum size of a message from a viewer")
    ] = 4608
    message_fragments: Annotated[
        PositiveInt, _description("Maximum number of fragments of such a message")
    ] = 8
    viewer_frames_per_second: Annotated[
        Rate, _description("Maximum rate of WebSocket frames from a viewer, of any kind")
    ] = 5.0
    viewer_frames_burst: Annotated[PositiveInt, _description("Maximum burst of such frames")] = 20
    sync_interval_s: Annotated[
        Seconds, _description("Minimum interval between two `sync` messages of a viewer")
    ] = 1.0
    auth_interval_s: Annotated[
        Seconds, _description("Minimum interval between two `auth` messages of a viewer")
    ] = 10.0
    viewer_mistakes: Annotated[
        PositiveInt, _description("Unreadable messages tolerated before a viewer is disconnected")
    ] = 3
    event_streams: Annotated[
        PositiveInt,
        _description("Maximum event streams (SSE) per api process"),
    ] = 1000
    event_stream_s: Annotated[
        Seconds,
        _description("Age at which an event stream is asked to reconnect; random, ±20 %"),
    ] = 900.0
    origins: Annotated[
        tuple[str, ...],
        _description(
            "Origins whose pages may connect and call the API, besides those of the same host"
        ),
    ] = ()
    frame_origins: Annotated[
        tuple[str, ...],
        _description(
            "Origins whose pages may show `/embed` in a frame; `*`: all; empty: SCOREBOARD_ORIGINS"
        ),
    ] = ()
    trusted_hops: Annotated[
        tuple[str, ...],
        _description(
            "Addresses or networks of trusted proxies (X-Forwarded-For); separated by commas"
        ),
    ] = ()

    # Redis and PostgreSQL
    dispatch_connections: Annotated[
        Annotated[int, Meta(ge=1, le=4)],
        _description(
            "Connections of one api process for updates, and as many for reads; in a cluster, to "
            "each primary"
        ),
    ] = 2
    dispatch_waiting: Annotated[
        PositiveInt,
        _description(
            "Maximum queued updates, and maximum queued reads, per api process; in a cluster, for "
            "each primary; then 503"
        ),
    ] = 4096
    redis_connect_timeout_s: Annotated[Seconds, _description("Time to connect to Redis")] = 1.0
    redis_timeout_s: Annotated[Seconds, _description("Time for one call to Redis")] = 3.0
    database_pool: Annotated[
        PositiveInt, _description("Maximum connections to PostgreSQL per process")
    ] = 4
    database_timeout_s: Annotated[
        Seconds, _description("Time to get a connection or an answer")
    ] = 5.0
    unsafe_redis: Annotated[
        bool,
        _description("Accept a Redis that may lose acknowledged actions"),
    ] = False
    vouched_redis: Annotated[
        bool,
        _description(
            "Accept a Redis that refuses CONFIG GET, as managed ones do; you guarantee that it has "
            "the required settings"
        ),
    ] = False
    acknowledge: Annotated[
        Literal["fsync", "replicated", "committed"],
        _description(
            "An update is answered when it is on Redis's disk (fsync), when replicas have it too "
            "(replicated), or when PostgreSQL has committed it (committed)"
        ),
    ] = "fsync"
    replicas: Annotated[
        PositiveInt,
        _description("Replicas that must have an update before it is answered (replicated)"),
    ] = 1
    replica_timeout_ms: Annotated[
        PositiveInt,
        _description("Time to wait for these replicas; after one retry, 503 outcome-unknown"),
    ] = 200
    commit_timeout_s: Annotated[
        Seconds, _description("Time to wait for the COMMIT (committed); then 503 outcome-unknown")
    ] = 3.0
    flush_batch: Annotated[
        PositiveInt,
        _description("Maximum events per transaction; 2.5 times as many during catch-up"),
    ] = 2000
    flush_linger_ms: Annotated[
        LingerInt,
        _description(
            "Time to wait for more events after a batch that was not full, while an api waits for "
            "COMMITs (committed)"
        ),
    ] = 20
    flush_linger_unawaited_ms: Annotated[
        LingerInt,
        _description(
            "Time to wait for more events after a batch that was not full, while no api waits for "
            "COMMITs; at least SCOREBOARD_FLUSH_LINGER_MS is used"
        ),
    ] = 100
    flush_partitions: Annotated[
        Annotated[int, Meta(ge=1, le=10_000)],
        _description(
            "Partitions of boards outside of SCOREBOARD_BOARDS that a flusher process serves at "
            "once, each with a connection to PostgreSQL; more partitions with work take turns"
        ),
    ] = 32
    flush_idle_s: Annotated[
        Annotated[float, Meta(ge=1, le=3600)],
        _description("Time without work after which the flusher gives such a partition back"),
    ] = 60.0
    verify_users_per_s: Annotated[
        Annotated[int, Meta(ge=0, le=5000)],
        _description(
            "Users per second and board that the flusher compares in Redis and PostgreSQL; 0: none"
        ),
    ] = 200
    services: Annotated[
        tuple[
            Annotated[str, Meta(pattern=rf"^(api|admin|streamer|flusher)=https?://[^\s@]+{END}")],
            ...,
        ],
        _description(
            "Metrics addresses of the services for `scoreboard status` and the administrator's "
            "page, such as api=http://api:9100,flusher=http://flusher:9102; admin is the api for "
            "administrators; empty: those of the ports above"
        ),
    ] = ()

    # Process
    drain_s: Annotated[Seconds, _description("Time to shut down after SIGTERM")] = 10.0
    drain_notice_s: Annotated[
        Seconds,
        _description(
            "Part of SCOREBOARD_DRAIN_S in which the api accepts requests but is not ready"
        ),
    ] = 0.5
    tracing: Annotated[
        Literal["off", "app", "gateway"],
        _description(
            "Traces by OpenTelemetry, to the collector of OTEL_EXPORTER_OTLP_ENDPOINT; who chooses "
            "the traced requests: the api by SCOREBOARD_TRACE_RATIO (app), or the sampled flag of "
            "`traceparent` from a trusted proxy (gateway)"
        ),
    ] = "off"
    trace_ratio: Annotated[
        Annotated[float, Meta(ge=0, le=1)],
        _description("Share of requests that are traced, unless a gateway chooses"),
    ] = 0.01
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], _description("Minimum severity of log lines")
    ] = "info"
    log_format: Annotated[
        Literal["json", "console"],
        _description("Format of log lines; the commands write plain text unless it is set to json"),
    ] = "json"
    log_lines: Annotated[
        PositiveInt,
        _description("Maximum log lines of one kind in ten seconds; the rest are counted"),
    ] = 20
    log_success_share: Annotated[
        Annotated[float, Meta(ge=0, le=1)],
        _description("Share of requests with a status below 400 that are logged; others all are"),
    ] = 0.01
    audit_lines: Annotated[
        PositiveInt,
        _description("Maximum audit lines of one kind in ten seconds; the rest are counted"),
    ] = 200
    audit_updates: Annotated[
        bool,
        _description(
            "Write an audit line for each accepted update too, not only for refused ones; they are "
            "in the ledger in any case"
        ),
    ] = False
    environment: Annotated[
        str, _description("Name, for logs; development allows a local issuer and http:// key sets")
    ] = "development"
    secrets: Annotated[
        Literal["env", "file", "aws"],
        _description("Where credentials come from: these variables, files, or AWS Secrets Manager"),
    ] = "env"
    redis_secret: Annotated[
        str,
        _description(
            "Where the Redis credentials (JSON with username and password) are: name in AWS, path "
            "of a file, or environment variable; may be empty with env: those of REDIS_URL"
        ),
    ] = ""
    database_secret: Annotated[
        str,
        _description("The same for PostgreSQL; may be empty with env: those of DATABASE_URL"),
    ] = ""
    admin_api: Annotated[
        bool,
        _description(
            "The api serves administrators, at /api/admin and /admin; it then needs the logins of "
            "an operator"
        ),
    ] = False
    admin_redis_secret: Annotated[
        str,
        _description(
            "The operator's login of Redis for /api/admin, like SCOREBOARD_REDIS_SECRET; empty: "
            "that of the api"
        ),
    ] = ""
    admin_database_secret: Annotated[
        str, _description("The same for PostgreSQL; empty: that of the api")
    ] = ""
    secrets_refresh_s: Annotated[
        Annotated[float, Meta(ge=1, le=3600)],
        _description("Interval at which a secret is read again, ±10 %; of files at most 5 s"),
    ] = 120.0

    def head_limits(self) -> HeadLimits:
        """Return the limits on request heads."""
        return HeadLimits(
            head_bytes=self.head_bytes,
            fields=self.head_fields,
            line_bytes=self.request_line_bytes,
        )


def variable_name(field: str) -> str:
    """Return the environment variable of a field."""
    return UNPREFIXED.get(field, PREFIX + field.upper())


def describe() -> Iterator[tuple[str, str, object]]:
    """Return variable, description and default of every setting, in order."""
    hints = get_type_hints(Settings, include_extras=True)
    for field in msgspec.structs.fields(Settings):
        metas = [meta for meta in hints[field.name].__metadata__ if isinstance(meta, Meta)]
        text = next(meta.description for meta in metas if meta.description)
        yield variable_name(field.name), text, field.default


def list_changed(settings: Settings) -> list[str]:
    """Return the settings that differ from their defaults as NAME=value, without secrets."""
    return [
        f"{variable_name(field.name)}={_text(value)}"
        for field in msgspec.structs.fields(Settings)
        if not isinstance(value := getattr(settings, field.name), Secret) and value != field.default
    ]


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def load(environ: Mapping[str, str]) -> Settings:
    """Read the settings from environment variables.

    Raises SettingInvalid, naming the variable, if one is unknown, missing or invalid.
    """
    fields = {variable_name(field.name): field for field in msgspec.structs.fields(Settings)}
    links = service_links(environ)
    environ = {name: text for name, text in environ.items() if name not in links}
    unknown = sorted(name for name in environ if name.startswith(PREFIX) and name not in fields)
    if unknown:
        near = difflib.get_close_matches(unknown[0], fields, n=1, cutoff=0.75)
        hint = f"did you mean {near[0]}?" if near else "see .env.example"
        raise SettingInvalid(f"{unknown[0]} is not a setting of scoreboard: {hint}")
    hints = get_type_hints(Settings, include_extras=True)
    values: dict[str, Any] = {}
    for variable, field in fields.items():
        text = environ.get(variable)
        kind = _bare(hints[field.name])
        if text is None or text == "":
            if field.required:
                raise SettingInvalid(f"{variable} is not set; see .env.example")
            continue
        try:
            values[field.name] = msgspec.convert(
                text.split(",") if get_origin(kind) is tuple else text,
                hints[field.name],
                strict=False,
                dec_hook=_decode_secret,
            )
        except msgspec.ValidationError as error:
            shown = "the value" if kind is Secret else repr(text)
            why = describe_violation(error, hints[field.name])
            raise SettingInvalid(f"{variable}: {shown} is invalid: {why}") from None
    found = Settings(**values)
    for name in found.boards:
        if found.boards.count(name) > 1:
            raise SettingInvalid(f"{variable_name('boards')}: {name} is listed more than once")
    check_redis_url(found.redis_url.reveal())
    if found.database_url:
        check_database_url(found.database_url.reveal())
    return found


def deprecated(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the settings in use that the next release removes, with what to do instead."""
    return {name: text for name, text in DEPRECATED.items() if environ.get(name)}


def service_links(environ: Mapping[str, str]) -> list[str]:
    """Return the variables that Kubernetes sets for Services called `scoreboard` or `scoreboard-…`.

    A pod gets them for every Service of its namespace (`enableServiceLinks`). They are recognised
    by name and value: SCOREBOARD_API_PORT is a setting if its value is a number.
    """
    return sorted(
        name
        for name, text in environ.items()
        if (link := _LINK.fullmatch(name)) and _LINK_VALUES[_suffix_of(link)].fullmatch(text)
    )


def _suffix_of(link: re.Match[str]) -> str:
    return next(name for name, text in link.groupdict().items() if text is not None)


def _bare(hint: object) -> object:
    """Return the type without annotations."""
    return _bare(get_args(hint)[0]) if get_origin(hint) is Annotated else hint


def _decode_secret(kind: type, value: object) -> object:
    if kind is Secret and isinstance(value, str):
        return Secret(value)
    raise TypeError(kind)
