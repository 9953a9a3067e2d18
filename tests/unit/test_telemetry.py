"""Log lines: ECS names, and nothing that looks like a credential."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from scoreboard import telemetry

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


def test_a_line_has_the_common_names(lines: io.StringIO) -> None:
    with structlog.contextvars.bound_contextvars(request_id="req-1"):
        telemetry.get_logger("x").info("score_updated", board="main")

    line = json.loads(lines.getvalue())
    assert line["message"] == "score_updated"
    assert line["log.level"] == "info"
    assert line["service.name"] == "scoreboard-api"
    assert line["http.request.id"] == "req-1"
    assert line["scoreboard.board"] == "main"


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


def test_the_standard_library_goes_the_same_way(lines: io.StringIO) -> None:
    logging.getLogger("uvicorn.error").info("password=%s", "x")

    assert json.loads(lines.getvalue())["log.logger"] == "uvicorn.error"
