"""Structured logging, and the metrics that services share.

Log lines are JSON objects on stderr with ECS field names and types (scoreboard.runtime.log_fields).
Credentials are redacted: values by the name of their key, tokens and passwords by their form, also
in tracebacks. Lines are rate-limited by kind (scoreboard.runtime.log_limits), because clients can
cause some of them; audit lines have a limit of their own (scoreboard.runtime.audit).
"""

import atexit
import logging
import math
import os
import re
import socket
import sys
from collections.abc import Mapping, MutableMapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, TypeVar

import structlog
from msgspec import Struct
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from scoreboard.runtime.log_fields import ITEMS_MAX, convert
from scoreboard.runtime.log_limits import (
    LINES_MAX,
    WINDOW_S,
    LineRateLimiter,
    event_kind,
    truncate,
)
from scoreboard.trace_context import TraceContext, parse_traceparent

ECS_VERSION: Final = "8.17.0"

AUDIT_LOGGER: Final = "scoreboard.audit"
APP_DATASET: Final = "scoreboard.app"
AUDIT_DATASET: Final = "scoreboard.audit"
"""The data streams of the lines: logs-scoreboard.app-* and logs-scoreboard.audit-*."""

REGISTRY: Final = CollectorRegistry(auto_describe=True)
"""All metrics of this process. Each process has its own port; there is no multiprocess mode."""

disable_created_metrics()  # one more series for each counter and histogram, which nothing reads

HTTP_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
REDIS_BUCKETS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1)
FLUSH_BUCKETS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
VIEWER_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2, 5)
BATCH_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64)

UNITS: Final = {"_timestamp_seconds": "Unix time, s", "_seconds": "s", "_bytes": "bytes"}
"""The unit of a metric by the end of its name; others name their unit."""


class MetricDescription(Struct, frozen=True):
    """What docs/reference/metrics.md says about a metric."""

    name: str
    kind: str
    labels: tuple[str, ...]
    about: str
    unit: str
    normal: str


METRICS: Final[dict[str, MetricDescription]] = {}
"""The metrics of this process by name."""


def describe_metric(
    kind: str, name: str, about: str, labels: tuple[str, ...] = (), *, unit: str, normal: str
) -> None:
    """Describe a metric for the reference page; ``normal`` is what a healthy system shows."""
    if not unit:
        unit = next((unit for end, unit in UNITS.items() if name.endswith(end)), "")
    METRICS[name] = MetricDescription(name, kind, labels, about, unit, normal)


def counter(name: str, about: str, *labels: str, unit: str = "", normal: str = "") -> Counter:
    """Make a counter. Label values are from closed sets, never users, tokens or actions."""
    name = f"scoreboard_{name}"
    describe_metric("counter", name, about, labels, unit=unit, normal=normal)
    return Counter(name, about, labels, registry=REGISTRY)


def gauge(name: str, about: str, *labels: str, unit: str = "", normal: str = "") -> Gauge:
    """Make a gauge."""
    name = f"scoreboard_{name}"
    describe_metric("gauge", name, about, labels, unit=unit, normal=normal)
    return Gauge(name, about, labels, registry=REGISTRY)


def state_gauge(name: str, about: str, *, normal: str = "1") -> Gauge:
    """Make a gauge of a state, 1 or 0. It is NaN until the state is known: no alert compares so."""
    made = gauge(name, about, unit="0 or 1", normal=normal)
    made.set(math.nan)
    return made


def histogram(
    name: str,
    about: str,
    buckets: tuple[float, ...],
    *labels: str,
    unit: str = "",
    normal: str = "",
) -> Histogram:
    """Make a histogram with the given buckets."""
    name = f"scoreboard_{name}"
    describe_metric("histogram", name, about, labels, unit=unit, normal=normal)
    return Histogram(name, about, labels, registry=REGISTRY, buckets=buckets)


_Metric = TypeVar("_Metric", Counter, Gauge, Histogram)


class Children(dict[str | tuple[str, ...], _Metric]):
    """The children of a labelled metric by label value, or by values in order.

    A child is made once, because ``labels`` costs more than counting. Children of known values are
    made at once and export 0: ``increase`` does not see the first event of a series that begins
    with it.
    """

    def __init__(self, metric: _Metric, *known: str | tuple[str, ...]) -> None:
        super().__init__()
        self._metric = metric
        for values in known:
            self[values] = self._make(values)

    def __missing__(self, values: str | tuple[str, ...]) -> _Metric:
        child = self[values] = self._make(values)
        return child

    def remove(self, values: str | tuple[str, ...]) -> None:
        """Remove a child, which is not exported any more."""
        if self.pop(values, None) is not None:
            self._metric.remove(*((values,) if isinstance(values, str) else values))

    def _make(self, values: str | tuple[str, ...]) -> _Metric:
        return self._metric.labels(*((values,) if isinstance(values, str) else values))


# Metrics of every service; others are beside the code that measures.
ProcessCollector(registry=REGISTRY)
for _row in (
    ("counter", "process_cpu_seconds_total", "CPU time, user and system", "s", "below one core"),
    ("gauge", "process_resident_memory_bytes", "Memory in RAM", "bytes", "steady at steady load"),
    ("gauge", "process_virtual_memory_bytes", "Address space", "bytes", "any"),
    ("gauge", "process_start_time_seconds", "Start of the process", "Unix time, s", "any"),
    ("gauge", "process_open_fds", "Open file descriptors", "files", "one for each connection"),
    ("gauge", "process_max_fds", "Most file descriptors", "files", "well above process_open_fds"),
):
    describe_metric(*_row[:3], unit=_row[3], normal=_row[4])
BUILD_INFO = gauge(
    "build_info", "Always 1", "version", "service", unit="none", normal="1; the expected version"
)
LINES_DROPPED = counter(
    "log_lines_dropped_total",
    "Log lines dropped by the rate limit",
    unit="lines",
    normal="0; increases while clients cause many refusals",
)
TRACE_SPANS = Children(
    counter(
        "trace_spans_total",
        "Spans that ended, and of these the exported and the failed ones",
        "result",
        unit="spans",
        normal="0 without tracing; failed: 0",
    ),
    *("ended", "exported", "failed"),
)

_SECRET_KEY = re.compile(
    r"authorization|cookie|password|passwd|secret|token|dsn|database_url|redis_url", re.IGNORECASE
)
_SECRET_TEXT = re.compile(
    r"eyJ[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*){0,2}"  # a JWT
    r"|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"  # user:password of a URL
    r"|(?i:(?<=bearer )\S+)"
    r"|(?i:(?<=password=)[^&\s]+)"  # a parameter of a URL
)
_REDACTED = "[redacted]"


def redact(text: str) -> str:
    """Replace credentials in a text."""
    return _SECRET_TEXT.sub(_REDACTED, text)


def _redact_event(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if _SECRET_KEY.search(key) and key != "token_reason":
            event[key] = _REDACTED
        else:
            event[key] = _redact_value(key, value)
    return event


def _redact_value(key: str, value: Any) -> Any:  # noqa: ANN401 (a logged value)
    match value:
        case str():
            return redact(truncate(key, value))
        case Mapping():
            return {
                name: _REDACTED if _SECRET_KEY.search(str(name)) else _redact_value(key, item)
                for name, item in list(value.items())[:ITEMS_MAX]
            }
        case list() | tuple() | set() | frozenset():
            return [_redact_value(key, item) for item in list(value)[:ITEMS_MAX]]
        case _:
            return value


def _describe_exception(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Add type and message of the exception, which the stack trace only contains as text."""
    error = event.get("exc_info")
    if error is True:
        error = sys.exc_info()[1]
    elif isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        event.setdefault("error", type(error).__name__)
        event.setdefault("error_message", str(error))
    return event


def _add_trace(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Replace ``trace`` by ids: of a span of this process, or of the trace in a ``traceparent``.

    Headers are parsed here, so a request that writes no line costs nothing.
    """
    trace = event.pop("trace", None)
    if isinstance(trace, TraceContext):
        event["span_id"] = trace.span_id
    else:
        trace = parse_traceparent(trace)
    if trace is not None:
        event["trace_id"] = trace.trace_id
    return event


class _Ecs:
    """Renames fields to those of the Elastic Common Schema."""

    def __init__(self, service: str, environment: str) -> None:
        self._fixed = {
            "ecs.version": ECS_VERSION,
            "service.name": f"scoreboard-{service}",
            "service.version": _version(),
            "service.environment": environment,
            "service.node.name": socket.gethostname(),
            "process.pid": os.getpid(),
        }

    def __call__(
        self, _logger: object, _method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        message, logger = str(event.pop("event")), event.pop("logger", "")
        line: dict[str, Any] = {
            "@timestamp": event.pop("timestamp"),
            "log.level": event.pop("level"),
            "message": message,
            "log.logger": logger,
            **self._fixed,
            "event.dataset": AUDIT_DATASET if logger == AUDIT_LOGGER else APP_DATASET,
        }
        if not event.pop(_FOREIGN, False):
            line["event.action"] = message
        line.update(convert(event))
        return line


_FOREIGN: Final = "_is_foreign"


def _mark_foreign(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Mark a line of a library: its text is not the name of an event."""
    event[_FOREIGN] = True
    return event


def _version() -> str:
    try:
        return version("scoreboard")
    except PackageNotFoundError:
        return "unknown"  # a package without metadata, such as that of the rotation function


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a module."""
    return structlog.stdlib.get_logger(name)


_REPORT: Final = "log_lines_dropped"


class _RateLimitFilter(logging.Filter):
    """Rate-limits lines: those of structlog as a processor, others as a filter of the handler."""

    def __init__(self) -> None:
        super().__init__()
        self.limit = LineRateLimiter(self._report)

    def __call__(
        self, _logger: object, _method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        """Drop a line over the limit (a processor of structlog)."""
        if getattr(_logger, "name", "") == AUDIT_LOGGER or event["event"] == _REPORT:
            return event
        if not self._allow(event_kind(event)):
            raise structlog.DropEvent
        return event

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record may be written; its kind is its text without arguments."""
        is_ours = isinstance(record.msg, dict)
        return is_ours or self._allow(f"{record.name} {str(record.msg)[:100]}")

    def _allow(self, kind: str) -> bool:
        is_allowed = self.limit.allow(kind)
        if not is_allowed:
            LINES_DROPPED.inc()
        return is_allowed

    def _report(self, kind: str, count: int) -> None:
        get_logger(__name__).warning("log_lines_dropped", of=kind, count=count, within_s=WINDOW_S)


RATE_LIMIT_FILTER: Final = _RateLimitFilter()
"""One instance per process, even if logging is set up repeatedly."""


def setup_logging(
    service: str, *, level: str, form: str, environment: str, lines_max: int = LINES_MAX
) -> None:
    """Send the records of structlog and of logging through the same processors to stderr.

    ``lines_max`` limits the lines of one kind per window. Also exports the service's version.
    """
    BUILD_INFO.labels(_version(), service).set(1)
    atexit.register(RATE_LIMIT_FILTER.limit.flush)
    RATE_LIMIT_FILTER.limit.lines_max = lines_max
    is_json = form == "json"
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        _add_trace,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        *([_describe_exception] if is_json else []),
        structlog.processors.format_exc_info,
        _redact_event,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            RATE_LIMIT_FILTER,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    last: list[Any] = (
        [_Ecs(service, environment), structlog.processors.JSONRenderer()]
        if is_json
        else [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(RATE_LIMIT_FILTER)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, _mark_foreign] if is_json else shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Audit lines are written at every level.
    logging.getLogger(AUDIT_LOGGER).setLevel(logging.INFO)
    for noisy in ("httpx", "httpcore", "websockets", "botocore", "boto3", "urllib3", "asyncio"):
        # Some of these log headers, including tokens, at DEBUG.
        logging.getLogger(noisy).setLevel(logging.WARNING)
