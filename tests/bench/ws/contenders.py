"""Other implementations with the same BoardWatcher, each run as a program.

`python -m tests.bench.ws.contenders broadcast PORT` · websockets' own server and its broadcast()
`python -m tests.bench.ws.contenders litestar PORT` · Litestar on uvicorn, one send per viewer
"""

import asyncio
import os
import sys
from typing import Any

import uvicorn
import uvloop
from litestar import Litestar, WebSocket, websocket
from websockets.asyncio.server import ServerConnection, broadcast, serve

from scoreboard.broadcast.messages import encode
from scoreboard.broadcast.state import BoardState
from scoreboard.broadcast.watcher import BoardWatcher
from scoreboard.runtime.settings import Settings, load


class LatestMessage:
    """The listener of the watcher: the latest message, and an event for changes."""

    def __init__(self) -> None:
        self.text = ""
        self.changed = asyncio.Event()

    def board_changed(self, state: BoardState, noticed_at_s: float) -> None:
        assert state.message is not None
        self.text = encode(state.message).decode()
        self.changed.set()

    def status_changed(self, state: BoardState) -> None:
        pass

    def access_changed(self, state: BoardState) -> None:
        pass

    def least_gap_s(self, board: str) -> float:
        return 0.0


async def by_broadcast(settings: Settings, port: int) -> None:
    latest = LatestMessage()
    viewers: set[ServerConnection] = set()

    async def handle(viewer: ServerConnection) -> None:
        await viewer.send(latest.text)
        viewers.add(viewer)
        try:
            await viewer.wait_closed()
        finally:
            viewers.discard(viewer)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(BoardWatcher(settings, latest, name="broadcast").run())
        await latest.changed.wait()
        async with serve(handle, "127.0.0.1", port, compression=None, backlog=4096):
            while True:
                latest.changed.clear()
                await latest.changed.wait()
                broadcast(viewers, latest.text)


async def by_litestar(settings: Settings, port: int) -> None:
    latest = LatestMessage()
    viewers: set[WebSocket[Any, Any, Any]] = set()

    @websocket("/ws/scoreboard")
    async def handle(socket: WebSocket[Any, Any, Any]) -> None:
        await socket.accept()
        await socket.send_text(latest.text)
        viewers.add(socket)
        try:
            while True:
                await socket.receive()
        finally:
            viewers.discard(socket)

    async def show() -> None:
        while True:
            await latest.changed.wait()
            latest.changed.clear()
            text = latest.text
            for viewer in tuple(viewers):
                try:
                    await viewer.send_text(text)
                except Exception:  # noqa: BLE001 (the viewer has disconnected)
                    viewers.discard(viewer)

    app = Litestar([handle], openapi_config=None, logging_config=None)
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, log_level="error", loop="none", backlog=4096,
        ws_per_message_deflate=False, lifespan="off",
    )  # fmt: skip
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(BoardWatcher(settings, latest, name="litestar").run())
        await latest.changed.wait()
        tasks.create_task(show())
        await uvicorn.Server(config).serve()


CONTENDERS = {"broadcast": by_broadcast, "litestar": by_litestar}


if __name__ == "__main__":
    chosen, at = CONTENDERS[sys.argv[1]], int(sys.argv[2])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(chosen(load(os.environ), at))
