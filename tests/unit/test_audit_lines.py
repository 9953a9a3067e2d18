"""Audit lines: their form, that every level has them, and their own limit."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from scoreboard.errors import Forbidden, Invalid, RateLimited, Unauthenticated
from scoreboard.runtime import audit, telemetry
from scoreboard.runtime.audit import audit_refusal, write_audit

DROPPED = "scoreboard_audit_lines_dropped_total"


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    audit.LIMIT.flush()
    telemetry.setup_logging("api", level="error", form="json", environment="test")
    yield stream
    audit.LIMIT.flush()
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def parse(lines: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.getvalue().splitlines()]


def test_an_act_has_the_fields_of_ecs_at_every_log_level(lines: io.StringIO) -> None:
    write_audit("board create", actor="root", board="main", audit_detail={"public": True})

    [line] = parse(lines)
    assert line["event.dataset"] == "scoreboard.audit"
    assert line["log.logger"] == "scoreboard.audit"
    assert line["event.action"] == "board create"
    assert line["event.kind"] == "event"
    assert line["event.category"] == ["configuration"]
    assert line["event.type"] == ["creation"]
    assert line["event.outcome"] == "success"
    assert line["user.name"] == "root"
    assert line["scoreboard.audit.detail"] == '{"public": true}'


@pytest.mark.parametrize(
    ("error", "action", "reason"),
    [
        (Unauthenticated(reason="expired"), "authenticate", "expired"),
        (Forbidden("No"), "authorize", "No"),
        (RateLimited("Slow down"), "limit", "Slow down"),
    ],
)
def test_a_refusal_has_its_reason(
    lines: io.StringIO, error: Exception, action: str, reason: str
) -> None:
    audit_refusal(error, client="192.0.2.1", request_id="request-1")  # type: ignore[arg-type]

    [line] = parse(lines)
    assert line["event.action"] == action
    assert line["event.outcome"] == "failure"
    assert line["event.reason"] == reason
    assert line["client.ip"] == "192.0.2.1"
    assert line["http.request.id"] == "request-1"


def test_an_invalid_request_denies_no_access(lines: io.StringIO) -> None:
    audit_refusal(Invalid(), client="192.0.2.1")

    assert parse(lines) == []


def test_lines_of_one_kind_are_limited_and_counted(lines: io.StringIO) -> None:
    before = telemetry.REGISTRY.get_sample_value(DROPPED) or 0.0
    for _ in range(1000):
        audit_refusal(Unauthenticated(), client="192.0.2.1")
    write_audit("board create", actor="root", board="main")
    audit.LIMIT.flush()

    written = parse(lines)
    assert len(written) == audit.LINES_MAX + 2
    assert written[-2]["event.action"] == "board create"
    assert written[-1]["event.action"] == "audit drop"
    assert written[-1]["scoreboard.count"] == 1000 - audit.LINES_MAX
    assert telemetry.REGISTRY.get_sample_value(DROPPED) == before + 1000 - audit.LINES_MAX
