"""The operators' port: its responses, and that no client can block probes."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from cli.embedded.ports import find_free_port
from scoreboard.errors import SettingInvalid
from scoreboard.http.operator_port import LIMITS, OperatorPort, bind_operators
from tests.support.clients.viewer import HttpResponse, RawViewer


class Process:
    """The process whose state the port reports."""

    is_ready = True

    def __init__(self) -> None:
        listener = bind_operators("127.0.0.1", find_free_port(), variables="HOST, PORT")
        assert listener is not None
        self.port: int = listener.getsockname()[1]
        self.served = OperatorPort(listener, self.state)

    def state(self) -> tuple[bool, dict[str, str]]:
        return self.is_ready, {"main": "live"}

    async def ask(self, raw: bytes) -> HttpResponse:
        client = await RawViewer.open(self.port)
        try:
            await client.send(raw)
            return await client.answer()
        finally:
            client.close()

    async def get(self, path: str, method: str = "GET") -> HttpResponse:
        return await self.ask(f"{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())


@pytest.fixture
async def process() -> AsyncIterator[Process]:
    process = Process()
    async with process.served:
        yield process


async def test_probes_and_metrics_are_answered(process: Process) -> None:
    store, ready = await process.get("/health/live"), await process.get("/health/ready?x=1")
    process.is_ready = False
    unready = await process.get("/health/ready")
    metrics = await process.get("/metrics")

    assert (store.status, json.loads(store.body)) == (200, {"status": "live"})
    assert (ready.status, json.loads(ready.body)) == (200, {"status": "ready", "main": "live"})
    assert (unready.status, json.loads(unready.body)["status"]) == (503, "not ready")
    assert b"# HELP scoreboard_" in metrics.body
    assert metrics.headers["content-type"].startswith("text/plain")
    for answer in (store, ready, unready, metrics):
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-request-id"]


async def test_head_returns_the_headers_of_get_without_the_body(process: Process) -> None:
    get = await process.get("/health/live")
    client = await RawViewer.open(process.port)
    await client.send(b"HEAD /health/live HTTP/1.0\r\n\r\n")

    head = await client.eof()
    client.close()

    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert f"content-length: {len(get.body)}\r\n".encode() in head.lower()
    assert head.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (b"GET /elsewhere HTTP/1.1\r\nHost: a\r\n\r\n", 404, "not-found"),
        (b"GET /health/live/ HTTP/1.1\r\nHost: a\r\n\r\n", 404, "not-found"),
        (b"GET //health/live HTTP/1.1\r\nHost: a\r\n\r\n", 400, "malformed"),
        (b"POST /metrics HTTP/1.1\r\nHost: a\r\n\r\n", 405, "method-not-allowed"),
        (b"get /metrics HTTP/1.1\r\nHost: a\r\n\r\n", 405, "method-not-allowed"),
        (b"GET /metrics HTTP/1.1\r\n\r\n", 400, "malformed"),
        (b"GET /metrics HTTP/2.0\r\nHost: a\r\n\r\n", 505, "http-version"),
        (b"\x16\x03\x01\r\n\r\n", 400, "malformed"),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 9000, 431, "head-too-large"),
    ],
)
async def test_other_requests_get_a_problem_with_a_request_id(
    process: Process, raw: bytes, status: int, code: str
) -> None:
    answer = await process.ask(raw)

    assert answer.status == answer.problem["status"] == status
    assert answer.problem["type"] == f"/docs/problems/{code}"
    assert answer.problem["request_id"] == answer.headers["x-request-id"]
    if status == 405:
        assert answer.headers["allow"] == "GET, HEAD"


async def test_idle_connections_do_not_block_probes(process: Process) -> None:
    silent = [await RawViewer.open(process.port) for _ in range(3 * LIMITS.connections)]
    try:
        for _ in range(5):
            assert (await process.get("/health/live")).status == 200
        assert await silent[0].eof() == b"", "the oldest are closed"
    finally:
        for one in silent:
            one.close()


async def test_a_connection_reset_affects_no_other_client(process: Process) -> None:
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    for _ in range(50):
        client = await RawViewer.open(process.port)
        await client.send(b"GET /metrics HTTP/1.1\r\n\r\n")
        client.reset()

    assert (await process.get("/health/live")).status == 200
    assert errors == []


def test_a_port_in_use_is_reported_with_its_settings() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingInvalid, match=f"HOST, PORT: cannot listen on .*:{port}"):
            bind_operators("127.0.0.1", port, variables="HOST, PORT")


async def test_port_0_serves_nothing() -> None:
    assert bind_operators("127.0.0.1", 0, variables="") is None
    async with OperatorPort(None):
        pass


async def test_slow_metrics_do_not_block_the_loop() -> None:
    collected = threading.Event()

    class Slow(Collector):
        def collect(self) -> Iterable[Metric]:
            assert collected.wait(60)
            return ()

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Slow())
    process = Process()
    process.served._registry, process.served._is_slow = registry, True
    async with process.served:
        metrics = asyncio.ensure_future(process.get("/metrics"))
        assert (await process.get("/health/live")).status == 200
        assert not metrics.done()
        collected.set()
        assert (await metrics).status == 200
