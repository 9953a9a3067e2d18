"""`/api/admin/status` shows the viewers and refusals that the processes count."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
import pytest
from websockets import Subprotocol
from websockets.sync.client import connect

from api.endpoints.admin import processes
from api.endpoints.admin.processes import Processes
from cli.embedded.ports import find_free_port
from scoreboard.runtime.settings import load
from scoreboard.security.tokens import ADMIN
from tests.support.eventually import eventually
from tests.support.servers.system import System

pytestmark = pytest.mark.slow

BUILD: Final = 'scoreboard_build_info{service="streamer",version="1"} 1.0\n'
READY: Final = (200, "{}")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("processes")
    with System(folder, admin_api="true", api_metrics_port=find_free_port()) as made:
        yield made


def look(system: System) -> dict[str, dict[str, Any]]:
    """Return the processes by service."""
    headers = {"Authorization": f"Bearer {system.token('carla', ADMIN)}"}
    url = f"{system.api}/api/admin/status"
    answer = httpx.get(url, headers=headers, timeout=30, trust_env=False)
    assert answer.status_code == 200, answer.text
    return {one["service"]: one for one in answer.json()["processes"]}


def test_viewers_and_refusals_are_those_of_the_processes(system: System) -> None:
    found = look(system)
    assert {one["state"] for one in found.values()} == {"ready"}
    assert (found["streamer"]["viewers"], found["flusher"]["viewers"]) == (0, None)
    assert found["api"]["refusals"] == {}

    body = {"userId": "alice", "actionId": "win:1"}
    for headers in ({"Authorization": "Bearer none"}, {}):
        answer = httpx.post(
            f"{system.api}/api/scores/update", json=body, headers=headers, trust_env=False
        )
        assert answer.status_code == 401
    stream = httpx.stream("GET", f"{system.api}/api/scores/stream", timeout=30, trust_env=False)
    protocols = [Subprotocol("scoreboard.v1")]
    with stream, connect(system.ws, subprotocols=protocols, proxy=None) as viewer:
        viewer.recv(timeout=10)
        eventually(lambda: look(system)["streamer"]["viewers"] == 1)
        found = look(system)
        assert found["api"]["viewers"] == 1
        assert sum(found["api"]["refusals"].values()) >= 1
        assert all(name.startswith("token ") for name in found["api"]["refusals"])
    eventually(lambda: look(system)["streamer"]["viewers"] == 0)


def test_a_process_that_does_not_answer_is_unknown_and_delays_nothing(system: System) -> None:
    pid = system.services["streamer"].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        took_s: list[float] = []

        def is_unknown() -> dict[str, dict[str, Any]] | None:
            started_s = time.monotonic()
            found = look(system)
            took_s.append(time.monotonic() - started_s)
            return found if found["streamer"]["state"] == "unknown" else None

        found = eventually(is_unknown)
        assert max(took_s) < processes.LIMIT_S + 2
    finally:
        os.kill(pid, signal.SIGCONT)
    assert found["streamer"] | {"address": ""} == {
        "service": "streamer",
        "address": "",
        "state": "unknown",
        "version": None,
        "viewers": None,
        "refusals": None,
    }
    assert found["api"]["state"] == "ready"
    eventually(lambda: look(system)["streamer"]["state"] == "ready")


@asynccontextmanager
async def answering(host: str, port: int, metrics: str, *, status: int = 200) -> AsyncIterator[int]:
    """Serve a metrics port; yield its number."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        body = (metrics if b" /metrics " in head else "{}").encode()
        code = 200 if b" /metrics " in head else status
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n" % (code, len(body)))
        writer.write(b"Connection: close\r\n\r\n" + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, host, port) as server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def reading(services: str) -> AsyncIterator[Processes]:
    settings = load({"REDIS_URL": "redis://r", "SCOREBOARD_SERVICES": services})
    made = Processes(settings)
    try:
        yield made
    finally:
        await made.aclose()


async def test_each_address_of_a_name_is_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    resolve = loop.getaddrinfo

    async def find(host: Any, port: Any, **more: Any) -> Any:
        if host != "streamer":
            return await resolve(host, port, **more)
        family, kind = socket.AF_INET, socket.SOCK_STREAM
        return [(family, kind, 6, "", (one, port)) for one in ("127.0.0.2", "127.0.0.1")]

    monkeypatch.setattr(loop, "getaddrinfo", find)
    viewers = 'scoreboard_ws_connections{{state="open"}} {}\n'
    others = 'scoreboard_ws_connections{state="other"} 5.0\n'
    async with (
        answering("127.0.0.1", 0, BUILD + viewers.format("3.0") + others) as port,
        answering("127.0.0.2", port, BUILD + viewers.format("4.0"), status=503),
        reading(f"streamer=http://streamer:{port}") as system,
    ):
        found = await system.read()
    assert [(one.address, one.viewers, one.state) for one in found] == [
        (f"127.0.0.1:{port}", 3, "ready"),
        (f"127.0.0.2:{port}", 4, "not ready"),
    ]


async def test_what_is_no_metrics_port_is_unknown() -> None:
    big = "x" * 5_000_000
    for text in ("", "\0", BUILD.replace("streamer", "flusher"), BUILD + BUILD.strip()[:-4], big):
        async with (
            answering("127.0.0.1", 0, text) as port,
            reading(f"streamer=http://127.0.0.1:{port}") as system,
        ):
            [one] = await system.read()
            assert one.state == "unknown", text[:80]
    services = f"api=http://no-such-host.invalid:1,flusher=http://127.0.0.1:{find_free_port()}"
    async with reading(services) as system:
        assert [one.state for one in await system.read()] == ["unknown", "unknown"]
