"""The messages to a service manager, received on a socket as systemd receives them."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scoreboard.runtime.service_manager import alive_interval_s

PROGRAM = """
import asyncio, os, signal, subprocess, sys, time
from scoreboard.runtime import lifecycle, telemetry
from scoreboard.runtime.service_manager import READY, notify

telemetry.setup_logging("test", level="info", form="json", environment="test")

async def serve(stop):
    {body}

sys.exit(lifecycle.run(serve, grace_s=20))
"""


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(20)
        yield listening


def start(
    body: str, address: str, *, output: int = subprocess.DEVNULL, **variables: str
) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=body)],
        env={**os.environ, "NOTIFY_SOCKET": address, **variables},
        stdout=output,
        stderr=subprocess.STDOUT,
    )


def received(manager: socket.socket) -> list[str]:
    """Return the messages that have arrived."""
    manager.setblocking(False)
    found = []
    try:
        while True:
            found.append(manager.recv(100).decode())
    except BlockingIOError:
        return found


def test_a_process_reports_that_it_is_ready_and_that_it_stops(manager: socket.socket) -> None:
    body = "notify(READY); os.kill(os.getpid(), signal.SIGTERM); await stop.wait()"
    assert start(body, manager.getsockname()).wait(30) == 0
    assert received(manager) == ["READY=1", "STOPPING=1"]


def test_an_abstract_socket_works() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(b"\0scoreboard-test-%d" % os.getpid())
        listening.settimeout(20)
        assert start("notify(READY)", f"@scoreboard-test-{os.getpid()}").wait(30) == 0
        assert listening.recv(100) == b"READY=1"


def test_the_watchdog_is_fed_while_the_event_loop_runs(manager: socket.socket) -> None:
    process = start("await stop.wait()", manager.getsockname(), WATCHDOG_USEC="150000")
    try:
        assert [manager.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
    finally:
        process.terminate()
    assert process.wait(30) == 0


def test_the_watchdog_is_not_fed_while_the_event_loop_is_blocked(manager: socket.socket) -> None:
    body = "await asyncio.sleep(0.2); notify('blocked'); time.sleep(1); os._exit(0)"
    assert start(body, manager.getsockname(), WATCHDOG_USEC="90000").wait(30) == 0
    found = received(manager)
    assert "WATCHDOG=1" in found
    assert found[-1] == "blocked"


def test_the_watchdog_of_another_process_is_not_fed() -> None:
    environ = {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid() + 1)}
    assert alive_interval_s(environ) is None
    assert alive_interval_s(environ | {"WATCHDOG_PID": str(os.getpid())}) == pytest.approx(1.0)
    assert alive_interval_s({"WATCHDOG_USEC": "often"}) is None


def test_a_missing_service_manager_does_not_stop_the_process(tmp_path: Path) -> None:
    process = start("notify(READY)", str(tmp_path / "nothing"), output=subprocess.PIPE)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert b"service_manager_unreachable" in output
