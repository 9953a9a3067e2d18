"""The committed documents of the API match the code and are valid."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from api.documents import openapi
from api.documents.forms import ALL_FORMS
from api.endpoints import sse
from scoreboard.broadcast import messages
from scoreboard.broadcast.close_codes import CloseCode, make_bye
from scoreboard.http.problems import PROBLEM_TYPES
from scoreboard.model import Row
from scoreboard.runtime.resources import web_path

ROOT = Path(__file__).parents[2]
DOCUMENT: dict[str, Any] = msgspec.json.decode((ROOT / "docs" / "openapi.json").read_bytes())


def test_openapi_json_matches_the_handlers() -> None:
    committed = (ROOT / "docs" / "openapi.json").read_bytes()
    assert committed == openapi.encoded(), "run `make openapi` and look at the difference"


def test_problems_md_matches_the_problem_types() -> None:
    committed = (ROOT / "docs" / "reference" / "problems.md").read_text(encoding="utf-8")
    assert committed == openapi.problems_text(), "run `make openapi`"


def test_the_document_is_valid_openapi_3_1() -> None:
    from openapi_spec_validator import OpenAPIV31SpecValidator  # slow to import

    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_the_events_of_streams_match_their_schemas() -> None:
    board = messages.Leaderboard(
        board="main", epoch=3, seq=1042, at=1, leaderboard=(Row(1, "alice", 10),)
    )
    sent = {
        messages.Leaderboard: board,
        messages.Heartbeat: messages.Heartbeat(board="main", epoch=3, seq=1042, at=1, exp=2),
        messages.Status: messages.Status(state="stale", reason="unreachable", partitions=(1,)),
        messages.Bye: make_bye(CloseCode.RESTART),
    }
    assert set(sent) == set(sse.STREAMED)
    schema = {"$ref": "#/components/schemas/StreamedEvent", "components": DOCUMENT["components"]}
    for message in sent.values():
        lines = sse.encode_event(message).decode().splitlines()
        event = dict(line.split(": ", 1) for line in lines if line)
        if isinstance(message, messages.Heartbeat):
            event["id"] = sse.event_id(board)  # the channel adds it
        check = Draft202012Validator(schema)
        assert check.is_valid(event), event
        assert not check.is_valid(event | {"event": "other"})
        [kind] = [
            shape
            for shape in DOCUMENT["components"]["schemas"].values()
            if shape.get("properties", {}).get("event") == {"const": event["event"]}
        ]
        content = schema | kind["properties"]["data"]["contentSchema"]
        check = Draft202012Validator(content)
        assert check.is_valid(msgspec.json.decode(event["data"])), event
        assert not check.is_valid({"type": event["event"]})


def test_the_example_of_the_stream_is_what_a_stream_sends() -> None:
    operation = DOCUMENT["paths"]["/api/scores/stream"]["get"]
    board = messages.Leaderboard(board="main", epoch=3, seq=1042, at=1767225600000, leaderboard=())
    retry = f"retry: {sse.RETRY_MS}\n\n"
    example = operation["responses"]["200"]["content"]["text/event-stream"]["example"]
    assert example == retry + sse.encode_event(board).decode()
    named = {(one["in"], one["name"]) for one in operation["parameters"]}
    assert named == {("query", "board"), ("header", "Last-Event-ID")}


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method, path, operation)
        for path, item in DOCUMENT["paths"].items()
        for method, operation in item.items()
    ]


ADMIN = {
    (method, f"/api/admin/{path}")
    for method, path in (
        *(("get", "acts"), ("post", "acts"), ("post", "acts/preview")),
        *(("post", "acts/{actId}/resume"), ("get", "audit"), ("get", "status")),
        *(("get", "users"), ("get", "users/{userId}"), ("get", "users/{userId}/history")),
        *(("get", "held"), ("post", "held/{heldId}/void")),
        *(("get", "boards"), ("post", "boards"), ("patch", "boards/{name}")),
        *(("get", "boards/{name}/seasons"), ("get", "boards/{name}/leaderboard")),
    )
}


def resolved(answer: dict[str, Any]) -> dict[str, Any]:
    """Follow a reference to an answer that operations share."""
    if "$ref" not in answer:
        return answer
    found: dict[str, Any] = DOCUMENT["components"]["responses"][answer["$ref"].rpartition("/")[2]]
    return found


def test_every_endpoint_is_documented() -> None:
    assert {(method, path) for method, path, _ in operations()} == {
        ("post", "/api/scores/update"),
        ("post", "/api/scores/updates"),
        *ADMIN,
        ("get", "/api/scores/users"),
        ("get", "/api/scores/me"),
        ("get", "/api/scores/rank"),
        ("get", "/api/scores/cutoff"),
        ("get", "/api/scores/users/{userId}/history"),
        ("get", "/api/scores/leaderboard"),
        ("get", "/api/scores/seasons"),
        ("get", "/api/scores/stream"),
        ("get", "/api/scores/users/{userId}"),
        ("get", "/api/boards"),
        ("get", "/api/boards/{name}"),
        ("get", "/health/live"),
        ("get", "/health/ready"),
    }


def test_every_error_is_a_problem_with_an_example_per_kind() -> None:
    shown: set[str] = set()
    for _, path, operation in operations():
        for status, answer in operation["responses"].items():
            if int(status) < 400 or (path, status) == ("/health/ready", "503"):
                continue
            content = resolved(answer)["content"]["application/problem+json"]
            assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
            for code, example in content["examples"].items():
                shown.add(code)
                assert example["value"]["status"] == int(status)
                assert example["value"]["type"].endswith(f"/{code}")
    assert shown == {kind.code for kind, about in PROBLEM_TYPES.items() if about.is_of_api}


def patterns_in(node: Any) -> set[str]:
    if isinstance(node, list):
        return set().union(*map(patterns_in, node))
    if not isinstance(node, dict):
        return set()
    own = {node["pattern"]} if isinstance(node.get("pattern"), str) else set[str]()
    return own.union(*map(patterns_in, node.values()))


def test_an_error_says_of_every_pattern_in_words_what_it_allows() -> None:
    known = {openapi.shorten_patterns(pattern) for pattern in ALL_FORMS}
    asked = [operation.get("parameters", []) for _, _, operation in operations()]
    assert patterns_in([asked, DOCUMENT["components"]["schemas"]]) <= known


def test_every_operation_documents_the_errors_of_any_request() -> None:
    for _, _, operation in operations():
        # 429 and 503 are also sent before a request is read, at a connection limit.
        everywhere = {"400", "405", "414", "417", "429", "431", "500", "503", "505"}
        assert everywhere <= operation["responses"].keys()


@pytest.mark.parametrize(
    "operation_id",
    [
        *("updateScore", "updateScores", "readLeaderboard", "readStanding", "readStandings"),
        *("readOwnStanding", "readRankOfScore", "readCutoff", "readHistory"),
    ],
)
def test_an_operation_that_requires_a_token_documents_it(operation_id: str) -> None:
    [operation] = [one for _, _, one in operations() if one["operationId"] == operation_id]
    assert any("bearer" in way for way in operation["security"])
    assert {"401", "403"} <= operation["responses"].keys()
    assert "WWW-Authenticate" in operation["responses"]["401"]["headers"]


def test_the_documentation_page_loads_nothing_from_other_hosts() -> None:
    for name in ("index.html", "start.js"):
        text = (web_path() / "docs" / name).read_text(encoding="utf-8")
        assert re.findall(r"(?:https?:)?//[a-z]", text) == [], name
    assert "validatorUrl: null" in (web_path() / "docs" / "start.js").read_text(encoding="utf-8")


def test_the_vendored_viewer_includes_its_licence() -> None:
    folder = web_path() / "docs" / "swagger-ui"
    assert "Apache License" in (folder / "LICENSE").read_text(encoding="utf-8")
    assert (folder / "NOTICE").read_text(encoding="utf-8").startswith("swagger-ui")


def test_the_vendored_qr_library_includes_its_licence() -> None:
    folder = web_path() / "vendor" / "uqr"
    licence = (folder / "LICENSE").read_text(encoding="utf-8")
    assert licence.startswith("MIT License")
    assert (folder / "NOTICE").read_text(encoding="utf-8").startswith("uqr")
    for line in (folder / "NOTICE").read_text(encoding="utf-8").splitlines()[1:]:
        assert line.removeprefix("Copyright (c) ") in licence
