"""A viewer that stays connected and records every older board it receives (I8)."""

import asyncio
import json
from typing import Any

import websockets
from websockets.asyncio.client import connect


class Viewer:
    """Reconnects without limit; ``rows`` is the current board."""

    def __init__(self, port: int, board: str = "main") -> None:
        self._url = f"ws://127.0.0.1:{port}/ws/scoreboard?board={board}"
        self.position: tuple[int, int] = (0, 0)
        self.rows: list[dict[str, Any]] = []
        self.frames = 0
        self._sent = (0, 0)
        self.violations: list[str] = []

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            try:
                async with connect(
                    self._url,
                    subprotocols=[websockets.Subprotocol("scoreboard.v1")],
                    open_timeout=2,
                    close_timeout=0.2,
                ) as socket:
                    self._sent = (0, 0)
                    async for message in socket:
                        self._take(json.loads(message))
            except (OSError, TimeoutError, websockets.WebSocketException):
                pass
            await asyncio.sleep(0.05)

    def _take(self, frame: dict[str, Any]) -> None:
        if frame["type"] != "leaderboard":
            return
        self.frames += 1
        position = (frame["epoch"], frame["seq"])
        if position < self._sent:
            self.violations.append(f"I8: sent {position} after {self._sent}")
        self._sent = position
        # Clients compare positions: a restarted streamer does not know earlier ones.
        if position[0] != self.position[0] or position[1] > self.position[1]:
            if position[0] < self.position[0]:
                self.violations.append(f"I8: shown {position} after {self.position}")
            self.position, self.rows = position, frame["leaderboard"]
