"""Shutdown: the first signal requests a stop; the second and the deadline end the process."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from scoreboard.runtime.lifecycle import EXIT_DEADLINE, StopEvent, backoff_s, supervise

PROGRAM = """
import asyncio, os, signal, sys
from scoreboard.runtime import lifecycle, telemetry
from scoreboard.errors import SettingInvalid

telemetry.setup_logging("test", level="info", form="json", environment="test")

async def serve(stop):
    {body}

sys.exit(lifecycle.run(serve, grace_s=0.2))
"""


def run(body: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


async def test_the_first_signal_sets_the_stop_event() -> None:
    async def serve(stop: StopEvent) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()

    await asyncio.wait_for(supervise(serve, grace_s=30), 30)


async def test_a_sleep_ends_when_the_stop_event_is_set() -> None:
    stop = StopEvent(1)
    stop.set()

    assert await asyncio.wait_for(stop.sleep(60), 30)
    assert not await StopEvent(1).sleep(0.001)


def test_a_process_that_exceeds_the_deadline_is_ended() -> None:
    done = run("os.kill(os.getpid(), signal.SIGTERM); await asyncio.Event().wait()")

    assert done.returncode == EXIT_DEADLINE


def test_the_deadline_applies_to_a_stop_without_a_signal() -> None:
    done = run("stop.set(); await asyncio.Event().wait()")

    assert done.returncode == EXIT_DEADLINE


def test_a_second_signal_ends_the_process_at_once() -> None:
    done = run(
        "loop = asyncio.get_running_loop()\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    await stop.wait()\n"
        "    stop.grace_s = 60\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    await asyncio.Event().wait()"
    )

    assert done.returncode == EXIT_DEADLINE


@pytest.mark.parametrize(
    ("body", "code"),
    [("return", 0), ("raise SettingInvalid('REDIS_URL')", 1), ("raise KeyError('x')", 1)],
)
def test_the_exit_code_is_1_after_an_error(body: str, code: int) -> None:
    assert run(body).returncode == code


def test_a_failed_task_ends_the_process_with_its_error() -> None:
    done = run(
        "async def fail(): raise SettingInvalid('broken inside')\n"
        "    async with asyncio.TaskGroup() as tasks:\n"
        "        tasks.create_task(fail())\n"
        "        await stop.wait()"
    )

    assert done.returncode == 1
    assert "broken inside" in done.stderr


def test_backoff_grows_and_is_bounded() -> None:
    waits = [max(backoff_s(attempt) for _ in range(50)) for attempt in (0, 3, 100)]

    assert waits[0] <= 0.1
    assert waits[1] <= 0.8
    assert 1 < waits[2] <= 5
