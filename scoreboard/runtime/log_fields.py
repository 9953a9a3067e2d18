"""The fields of log lines: the name and type of each, as in the Elastic Common Schema. No I/O.

Invariant: a field has one type in every line. A value of another type, and a value under a name
that is not listed here, becomes a text in ``labels``, where every value is a keyword.
``deploy/elastic/build.py`` makes the index templates from this table.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from ipaddress import ip_address
from typing import Any, Final, Literal, NamedTuple

FieldType = Literal["keyword", "wildcard", "match_only_text", "long", "double", "boolean", "ip"]
"""Types of Elasticsearch."""

ITEMS_MAX: Final = 50
"""Maximum items of a list; the rest is cut."""

LABELS_MAX: Final = 20
"""Maximum labels of one line; the rest is cut."""

_LONG_MAX: Final = 2**63 - 1
_LABEL: Final = re.compile(r"[^A-Za-z0-9_]")


class LogField(NamedTuple):
    """Name and type of a field."""

    name: str
    type: FieldType


def _own(type_: FieldType, *keys: str) -> dict[str, LogField]:
    return {key: LogField(f"scoreboard.{key}", type_) for key in keys}


FIELDS: Final[Mapping[str, LogField]] = {
    # Fields of the Elastic Common Schema
    "request_id": LogField("http.request.id", "keyword"),
    "method": LogField("http.request.method", "keyword"),
    "status": LogField("http.response.status_code", "long"),
    "client": LogField("client.address", "keyword"),
    "peer": LogField("source.ip", "ip"),
    "host": LogField("server.address", "keyword"),
    "port": LogField("server.port", "long"),
    "duration_s": LogField("event.duration", "long"),
    "reason": LogField("event.reason", "keyword"),
    "kind": LogField("event.kind", "keyword"),
    "category": LogField("event.category", "keyword"),
    "type": LogField("event.type", "keyword"),
    "outcome": LogField("event.outcome", "keyword"),
    "code": LogField("error.code", "keyword"),
    "error": LogField("error.type", "keyword"),
    "error_message": LogField("error.message", "match_only_text"),
    "exception": LogField("error.stack_trace", "wildcard"),
    "url": LogField("url.full", "wildcard"),
    "path": LogField("file.path", "keyword"),
    "user_id": LogField("user.id", "keyword"),
    "actor": LogField("user.name", "keyword"),
    "target_id": LogField("user.target.id", "keyword"),
    "trace_id": LogField("trace.id", "keyword"),
    "span_id": LogField("span.id", "keyword"),
    # Fields of this project
    **_own("keyword", "action_id", "board", "committed_id", "committed_position", "condition"),
    **_own(
        "keyword",
        "advice",
        "examples",
        "findings",
        "first_id",
        "kids",
        "never_for",
        "of",
        "owner",
        "partition",
        "pool",
    ),
    **_own("keyword", "problems", "reasons", "redis_position", "result", "route", "scopes"),
    **_own("keyword", "script", "season", "settings", "signal", "step", "variables", "version"),
    **_own("long", "attempt", "change", "connections", "count", "counted", "dead", "delta"),
    **_own("long", "epoch", "expected", "failures", "files", "found", "gone", "held", "keys"),
    **_own("long", "kinds", "late", "left", "redelivered", "requests", "score", "seq", "sessions"),
    **_own("long", "spans", "users", "viewers", "worker", "worker_pid"),
    **_own("double", "grace_s", "late_s", "spread_s", "within_s"),
    **_own("boolean", "is_held", "is_loaded", "is_replay"),
    "text": LogField("scoreboard.text", "match_only_text"),
    "name": LogField("scoreboard.secret_name", "keyword"),
    "audit_seq": LogField("scoreboard.audit.seq", "long"),
    "audit_hash": LogField("scoreboard.audit.hash", "keyword"),
    "audit_detail": LogField("scoreboard.audit.detail", "match_only_text"),
}
"""The fields by the names under which the code passes them."""

LINE_FIELDS: Final[Mapping[str, FieldType | Literal["date"]]] = {
    "@timestamp": "date",
    "log.level": "keyword",
    "log.logger": "keyword",
    "message": "match_only_text",
    "ecs.version": "keyword",
    "event.action": "keyword",
    "event.dataset": "keyword",
    "service.name": "keyword",
    "service.version": "keyword",
    "service.environment": "keyword",
    "service.node.name": "keyword",
    "process.pid": "long",
    "client.ip": "ip",
}
"""The fields that the line's form adds."""


def convert(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Return the fields of a line with values of their types; omit those that are None."""
    labels = 0
    for key, value in values.items():
        if value is None:
            continue
        field = FIELDS.get(key)
        converted = None if field is None else _convert(key, field.type, value)
        if field is not None and converted is not None:
            yield field.name, converted
            if key == "client" and (address := _ip(value)) is not None:
                yield "client.ip", address
        elif labels < LABELS_MAX:
            labels += 1
            yield f"labels.{_LABEL.sub('_', key)[:64]}", _keyword(value)


def _convert(key: str, type_: FieldType, value: Any) -> Any:  # noqa: ANN401 (a logged value)
    """Return a value, or a list of values, of a type; None if it cannot be one."""
    if key == "duration_s":
        return _nanoseconds(value)
    conversion = _CONVERSIONS[type_]
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes):
        items = [conversion(item) for item in list(value)[:ITEMS_MAX]]
        return None if None in items else items
    return conversion(value)


def _keyword(value: object) -> str:
    if isinstance(value, Enum):
        value = value.value
    text = (
        value
        if isinstance(value, str)
        else json.dumps(value, default=str, ensure_ascii=False)
        if isinstance(value, Mapping | list | tuple)
        else str(value)
    )
    # Elasticsearch refuses lone surrogates, which undecodable file names contain.
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _long(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if abs(value) <= _LONG_MAX else None


def _double(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _boolean(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _ip(value: object) -> str | None:
    try:
        return str(ip_address(value)) if isinstance(value, str) else None
    except ValueError:
        return None


def _nanoseconds(value: object) -> int | None:
    seconds = _double(value)
    return None if seconds is None else _long(round(seconds * 1e9))


_CONVERSIONS: Final[Mapping[FieldType, Callable[[Any], Any]]] = {
    "keyword": _keyword,
    "wildcard": _keyword,
    "match_only_text": _keyword,
    "long": _long,
    "double": _double,
    "boolean": _boolean,
    "ip": _ip,
}
