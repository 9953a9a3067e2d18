"""Services that record what the gateway forwards: one for HTTP, one for WebSockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request

Pairs = list[tuple[str, str]]


@dataclass
class Recorder:
    """What a service received; ``answer`` is the response over HTTP, None to disconnect."""

    target: str = ""
    requests: list[tuple[str, Pairs, bytes]] = field(default_factory=list)
    answer: bytes | None = b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nETag: "1"\r\n\r\n{}'
    heartbeat_s: float | None = None
    messages: list[str] = field(default_factory=list)

    def values(self, name: str) -> list[str]:
        """Return the last request's values of a header, by its exact spelling without case."""
        return [v for key, v in self.requests[-1][1] if key.lower() == name.lower()]

    @property
    def names(self) -> set[str]:
        """Return the last request's header names in lowercase."""
        return {name.lower() for name, _ in self.requests[-1][1]}


@asynccontextmanager
async def http_recorder() -> AsyncIterator[Recorder]:
    """Serve HTTP: record every request and send ``answer``."""
    recorder = Recorder()

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.rstrip("\r\n").split("\r\n")
                pairs = [(name, value) for name, _, value in (f.partition(": ") for f in lines)]
                length = next((int(v) for n, v in pairs if n.lower() == "content-length"), 0)
                recorder.requests.append((first, pairs, await reader.readexactly(length)))
                if recorder.answer is None:
                    return
                is_head = first.startswith("HEAD ")
                head_of_answer, _, _ = recorder.answer.partition(b"\r\n\r\n")
                writer.write(head_of_answer + b"\r\n\r\n" if is_head else recorder.answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve_one, "127.0.0.1", 0)
    recorder.target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield recorder
    finally:
        server.close()


@asynccontextmanager
async def ws_recorder() -> AsyncIterator[Recorder]:
    """Serve WebSockets: echo messages, and send one every ``heartbeat_s`` if that is set."""
    recorder = Recorder()

    def record(_connection: ServerConnection, request: Request) -> None:
        recorder.requests.append((request.path, list(request.headers.raw_items()), b""))

    async def talk(connection: ServerConnection) -> None:
        async def beat(interval_s: float) -> None:
            while True:
                await asyncio.sleep(interval_s)
                await connection.send("heartbeat")

        async with asyncio.TaskGroup() as tasks:
            beats = recorder.heartbeat_s and tasks.create_task(beat(recorder.heartbeat_s))
            try:
                async for message in connection:
                    recorder.messages.append(str(message))
                    await connection.send(message)
            except ConnectionClosed:
                pass
            finally:
                if beats:
                    beats.cancel()

    async with serve(
        talk, "127.0.0.1", 0, process_request=record, subprotocols=["scoreboard.v1"],  # type: ignore[list-item]
        ping_interval=None, compression=None,
    ) as server:  # fmt: skip
        recorder.target = f"127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        yield recorder
