"""Tells a service manager, such as systemd, when this process is ready, stops, and is alive.

The protocol is that of sd_notify(3): datagrams to the socket that NOTIFY_SOCKET names. Without this
variable nothing is sent. A message that cannot be sent is logged and does not affect the service.
"""

import asyncio
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from scoreboard.runtime.telemetry import get_logger

READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"
ALIVE: Final = "WATCHDOG=1"

VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")
"""What the service manager sets for its main process; child processes must not get them."""

_ALIVE_SHARE: Final = 1 / 3
"""Part of the watchdog's time between two messages."""

_log = get_logger(__name__)


def notify(state: str) -> None:
    """Send a state, such as READY."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(state.encode(), address)
    except OSError as error:
        _log.warning("service_manager_unreachable", reason=f"{state}: {error}")


def alive_interval_s(environ: Mapping[str, str]) -> float | None:
    """Return the time between two ALIVE messages; None if this process has no watchdog."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        limit_us = int(environ.get("WATCHDOG_USEC", ""))
    except ValueError:
        return None
    return limit_us / 1e6 * _ALIVE_SHARE if limit_us > 0 else None


@contextmanager
def watched() -> Iterator[None]:
    """Send ALIVE while the event loop runs, until the end of the block."""
    interval_s = alive_interval_s(os.environ)
    if interval_s is None:
        yield
        return
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None

    def send() -> None:
        nonlocal timer
        notify(ALIVE)
        timer = loop.call_later(interval_s, send)

    send()
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
