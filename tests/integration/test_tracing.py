"""Traces through the whole system, received by a collector of the test.

The first tests share one running system, in which every request is traced.
"""

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import redis
from websockets.asyncio.client import connect

from scoreboard.model import Partition
from scoreboard.store.keys import PartitionKeys
from tests.support.eventually import eventually, eventually_async
from tests.support.fakes.otlp import Collector, ReceivedSpan
from tests.support.servers.system import System

pytestmark = pytest.mark.slow

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e47", "00f067aa0ba902b7"
_numbers = iter(range(16, 256))


def new_traceparent(flags: str = "01") -> tuple[str, str]:
    """Return a trace id of a client, and its header."""
    trace_id = f"{TRACE}{next(_numbers):02x}"
    return trace_id, f"00-{trace_id}-{PARENT}-{flags}"


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[System, Collector]]:
    with Collector() as collector:
        folder = tmp_path_factory.mktemp("traced") / "system"
        environment = dict.fromkeys(("api", "streamer", "flusher"), collector.environment)
        system = System(
            folder, environments=environment, tracing="app", trace_ratio=1, rate_limit="gateway"
        )
        try:
            system.start()
            yield system, collector
        finally:
            system.stop()


def update(
    system: System, user: str, action: str, traceparent: str | None = None, **headers: str
) -> httpx.Response:
    headers |= {"Authorization": f"Bearer {system.token(user)}"}
    if traceparent is not None:
        headers["traceparent"] = traceparent
    with httpx.Client(trust_env=False, timeout=15) as client:
        return client.post(
            f"{system.api}/api/scores/update?board=main",
            json={"userId": user, "actionId": action},
            headers=headers,
        )


async def trace_with(collector: Collector, trace_id: str, *names: str) -> dict[str, ReceivedSpan]:
    """Wait for the spans of a trace; return them by name."""

    def is_complete() -> bool:
        return {span.name for span in collector.trace_of(trace_id)} >= set(names)

    await eventually_async(is_complete, within_s=10)
    return {span.name: span for span in collector.trace_of(trace_id)}


@pytest.fixture
async def viewer(traced: tuple[System, Collector]) -> AsyncIterator[object]:
    system, _ = traced
    headers = {"Authorization": f"Bearer {system.token('viewer')}"}
    async with connect(system.ws, additional_headers=headers, proxy=None) as viewer:
        await viewer.recv()
        yield viewer


REQUEST = "POST /api/scores/update"


async def test_one_trace_leads_from_the_client_to_the_frame(
    traced: tuple[System, Collector], viewer: object
) -> None:
    system, collector = traced
    trace_id, traceparent = new_traceparent()

    answer = update(system, "alice", "win:1", traceparent, **{"X-Request-Id": "request-0001"})

    assert answer.json()["newScore"] == 10
    spans = await trace_with(collector, trace_id, REQUEST, "submit.lua", "commit", "frame")
    assert len(collector.trace_of(trace_id)) == 4
    request, submit = spans[REQUEST], spans["submit.lua"]
    commit, frame = spans["commit"], spans["frame"]
    assert (request.parent_id, submit.parent_id) == (PARENT, request.span_id)
    assert commit.parent_id == frame.parent_id == submit.span_id
    services = [span.service for span in (request, submit, commit, frame)]
    assert [name.removeprefix("scoreboard-") for name in services] == [
        "api", "api", "flusher", "streamer",
    ]  # fmt: skip
    assert request.began_ns <= submit.began_ns <= submit.ended_ns <= request.ended_ns
    for span in (commit, frame):
        assert submit.began_ns <= span.began_ns <= span.ended_ns
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/api/scores/update",
        "http.response.status_code": 200,
        "scoreboard.request_id": "request-0001",
    }
    assert submit.attributes["scoreboard.outcome"] == "applied"
    assert submit.events == ["sent"]
    assert frame.attributes["scoreboard.viewers"] == 1
    assert frame.attributes["scoreboard.seq"] == submit.attributes["scoreboard.seq"]

    # The transaction has a trace of its own, with links in both directions.
    [(flush_trace, flush_id)] = commit.links
    flush = (await trace_with(collector, flush_trace, "flush"))["flush"]
    assert (flush.span_id, flush.parent_id) == (flush_id, "")
    assert (trace_id, submit.span_id) in flush.links
    assert flush.attributes["scoreboard.outcome"] == "flushed"


async def test_no_token_query_or_user_is_in_a_span(traced: tuple[System, Collector]) -> None:
    system, collector = traced
    trace_id, traceparent = new_traceparent()
    token = system.token("secretive-user")

    update(system, "secretive-user", "win:secret-action", traceparent)
    async with httpx.AsyncClient(base_url=system.api, trust_env=False) as client:
        headers = {"Authorization": f"Bearer {token}", "traceparent": traceparent}
        await client.get("/api/scores/users/secretive-user?around=23", headers=headers)
        await client.get("/nowhere/secretive-user?x=secret-query", headers=headers)

    await trace_with(
        collector, trace_id, REQUEST, "commit", "GET /api/scores/users/{user_id}", "GET"
    )
    for secret in ("secretive-user", "secret-action", "secret-query", "around", "win:", "eyJ"):
        assert secret.encode() not in collector.raw


async def test_a_replay_is_traced_without_a_commit(traced: tuple[System, Collector]) -> None:
    system, collector = traced
    update(system, "replayer", "win:1")
    trace_id, traceparent = new_traceparent()

    update(system, "replayer", "win:1", traceparent)

    spans = await trace_with(collector, trace_id, REQUEST, "submit.lua")
    assert spans["submit.lua"].attributes["scoreboard.outcome"] == "replayed"


@pytest.mark.parametrize("traceparent", ["ff-" + "a" * 32 + "-" + "b" * 16 + "-01", "garbage"])
async def test_an_invalid_header_starts_a_new_trace(
    traced: tuple[System, Collector], traceparent: str
) -> None:
    system, collector = traced
    action = f"win:{traceparent[:7]}"
    request_id = f"new-trace-{traceparent[:2]}"

    update(system, "newcomer", action, traceparent, **{"X-Request-Id": request_id})

    def found() -> list[ReceivedSpan]:
        return [
            span
            for span in collector.named(REQUEST)
            if span.attributes["scoreboard.request_id"] == request_id
        ]

    await eventually_async(found)
    [span] = found()
    assert span.parent_id == ""
    assert span.trace_id not in {"a" * 32, "0" * 32}


async def test_log_lines_name_the_span_of_the_process(traced: tuple[System, Collector]) -> None:
    system, collector = traced
    trace_id, traceparent = new_traceparent()
    async with httpx.AsyncClient(base_url=system.api, trust_env=False) as client:
        await client.post("/api/scores/update", headers={"traceparent": traceparent})

    spans = await trace_with(collector, trace_id, REQUEST)

    log = (system.folder / "api.log").read_text()
    lines = [json.loads(line) for line in log.splitlines() if trace_id in line]
    assert {line["span.id"] for line in lines} == {spans[REQUEST].span_id}
    assert spans[REQUEST].attributes["error.type"] == "unauthenticated"
    assert not spans[REQUEST].is_error, "the caller's mistake is no failure of the service"


async def test_the_spans_are_counted(traced: tuple[System, Collector]) -> None:
    system, _ = traced
    update(system, "counted", "win:1")
    port = system.variables["flusher"]["SCOREBOARD_FLUSHER_METRICS_PORT"]

    def exported() -> bool:
        with httpx.Client(trust_env=False) as client:
            text = client.get(f"http://127.0.0.1:{port}/metrics").text
        found = re.findall(r'scoreboard_trace_spans_total\{result="(\w+)"\} (\S+)', text)
        counts = {result: float(value) for result, value in found}
        return counts.get("exported", 0) == counts.get("ended") != 0

    eventually(exported)


async def test_a_stop_exports_what_is_queued(tmp_path: Path, collector: Collector) -> None:
    """The exporter would wait for an hour."""
    environment = collector.environment | {"OTEL_BSP_SCHEDULE_DELAY": "3600000"}
    system = System(
        tmp_path / "system",
        environments=dict.fromkeys(("api", "streamer", "flusher"), environment),
        tracing="app",
        trace_ratio=1,
    )
    try:
        system.start()
        trace_id, traceparent = new_traceparent()
        update(system, "alice", "win:1", traceparent)
        with redis.Redis.from_url(system.valkey.url) as client:
            events = PartitionKeys(Partition("main")).events
            eventually(lambda: client.xlen(events) == 0)
        assert collector.spans == []
    finally:
        system.stop()

    assert {span.name for span in collector.trace_of(trace_id)} == {
        REQUEST, "submit.lua", "commit", "frame",
    }  # fmt: skip
