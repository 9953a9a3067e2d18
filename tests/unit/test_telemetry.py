"""Log lines: ECS names, no credentials, and limits."""

import io
import json
import logging
import os
from collections.abc import Iterator

import pytest
import structlog

from scoreboard.runtime import telemetry
from scoreboard.runtime.log_limits import LINES_MAX
from scoreboard.trace_context import TraceContext

TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    telemetry.setup_logging("api", level="debug", form="json", environment="test")
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_a_line_has_ecs_field_names(lines: io.StringIO) -> None:
    with structlog.contextvars.bound_contextvars(request_id="req-1"):
        telemetry.get_logger("x").info("score_updated", board="main")

    line = json.loads(lines.getvalue())
    assert line["message"] == "score_updated"
    assert line["log.level"] == "info"
    assert line["service.name"] == "scoreboard-api"
    assert line["http.request.id"] == "req-1"
    assert line["scoreboard.board"] == "main"


TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("trace", "ids"),
    [
        (f"00-{TRACE}-{SPAN}-00".encode(), {"trace.id": TRACE}),
        (TraceContext(TRACE, SPAN), {"trace.id": TRACE, "span.id": SPAN}),
        (f"00-{TRACE.upper()}-{SPAN}-01".encode(), {}),
        (None, {}),
    ],
)
@pytest.mark.parametrize("form", ["json", "console"])
def test_a_line_has_the_ids_of_a_valid_trace(
    lines: io.StringIO, form: str, trace: object, ids: dict[str, str]
) -> None:
    telemetry.setup_logging("api", level="info", form=form, environment="test")
    with structlog.contextvars.bound_contextvars(trace=trace):
        telemetry.get_logger("x").info("request_served")
        logging.getLogger("other").info("also of the standard library")

    for line in lines.getvalue().splitlines():
        assert "scoreboard.trace" not in line
        if form == "json":
            found = {k: v for k, v in json.loads(line).items() if k in {"trace.id", "span.id"}}
            assert found == ids
        else:
            assert all(value in line for value in ids.values())
            assert "00-" not in line


@pytest.mark.parametrize(
    "fields",
    [
        {"authorization": f"Bearer {TOKEN}"},
        {"detail": f"sent Bearer {TOKEN} twice"},
        {"url": "redis://user:s3cret@host/0"},
        {"password": "s3cret"},
        {"note": TOKEN},
    ],
)
def test_no_credential_reaches_a_line(lines: io.StringIO, fields: dict[str, str]) -> None:
    telemetry.get_logger("x").warning("call_failed", **fields)

    assert "s3cret" not in lines.getvalue()
    assert "c2lnbmF0dXJl" not in lines.getvalue()


def test_no_credential_reaches_a_traceback(lines: io.StringIO) -> None:
    try:
        int(f"no such token {TOKEN}")
    except ValueError:
        telemetry.get_logger("x").exception("call_failed")

    assert "ValueError" in lines.getvalue()
    assert "c2lnbmF0dXJl" not in lines.getvalue()


def test_lines_of_the_standard_library_have_the_same_form(lines: io.StringIO) -> None:
    logging.getLogger("uvicorn.error").info("password=%s", "x")

    assert json.loads(lines.getvalue())["log.logger"] == "uvicorn.error"


def test_many_lines_of_one_kind_are_limited_and_counted(lines: io.StringIO) -> None:
    dropped = telemetry.REGISTRY.get_sample_value("scoreboard_log_lines_dropped_total") or 0.0
    log = telemetry.get_logger("x")
    for number in range(1000):
        log.info("request_served", status=401, client=str(number))
    log.info("request_served", status=503)
    telemetry.get_logger("y").error("batch_failed")
    telemetry.RATE_LIMIT_FILTER.limit.flush()

    written = [json.loads(line) for line in lines.getvalue().splitlines()]
    events = [line["message"] for line in written]
    assert events == ["request_served"] * 21 + ["batch_failed", "log_lines_dropped"]
    assert written[20]["http.response.status_code"] == 503
    assert written[-1]["scoreboard.of"] == "request_served 401"
    assert written[-1]["scoreboard.count"] == 980
    counted = telemetry.REGISTRY.get_sample_value("scoreboard_log_lines_dropped_total")
    assert counted == dropped + 980


def test_many_lines_of_the_standard_library_are_limited(lines: io.StringIO) -> None:
    for number in range(1000):
        logging.getLogger("uvicorn.error").warning("Invalid request %d", number)
    telemetry.RATE_LIMIT_FILTER.limit.flush()

    assert len(lines.getvalue().splitlines()) == 21


def test_the_length_of_a_line_is_limited(lines: io.StringIO) -> None:
    telemetry.get_logger("x").info("call_failed", detail="x" * 100_000)

    assert len(lines.getvalue()) < 3000


def test_a_line_names_service_version_node_and_process(lines: io.StringIO) -> None:
    telemetry.get_logger("x").info("board_live", board="main")

    line = json.loads(lines.getvalue())
    assert line["event.action"] == "board_live"
    assert line["event.dataset"] == "scoreboard.app"
    assert line["service.version"]
    assert line["service.node.name"]
    assert line["process.pid"] == os.getpid()


def test_a_line_of_a_library_names_no_event(lines: io.StringIO) -> None:
    logging.getLogger("some.library").warning("took %d ms", 7)

    line = json.loads(lines.getvalue())
    assert line["message"] == "took 7 ms"
    assert "event.action" not in line


def test_an_exception_has_type_message_and_stack_trace(lines: io.StringIO) -> None:
    telemetry.get_logger("x").error("process_crashed", exc_info=ValueError(f"bad {TOKEN}"))

    line = json.loads(lines.getvalue())
    assert line["error.type"] == "ValueError"
    assert line["error.message"] == "bad [redacted]"
    assert "ValueError" in line["error.stack_trace"]


def test_credentials_in_lists_and_objects_are_redacted(lines: io.StringIO) -> None:
    telemetry.get_logger("x").warning(
        "keys_ignored", reasons=[f"Bearer {TOKEN}"], detail={"password": "s3cret", "b": [TOKEN]}
    )

    assert "s3cret" not in lines.getvalue()
    assert "c2lnbmF0dXJl" not in lines.getvalue()


def test_the_limit_of_lines_is_a_setting(
    lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", lines)
    telemetry.setup_logging("api", level="info", form="json", environment="test", lines_max=3)
    try:
        for _ in range(10):
            telemetry.get_logger("x").info("request_limited")
        telemetry.RATE_LIMIT_FILTER.limit.flush()
    finally:
        telemetry.RATE_LIMIT_FILTER.limit.lines_max = LINES_MAX

    events = [json.loads(line)["message"] for line in lines.getvalue().splitlines()]
    assert events == ["request_limited"] * 3 + ["log_lines_dropped"]
