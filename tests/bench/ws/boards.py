"""`python -m tests.bench.ws.boards`: what boards cost a streamer that are listed, watched, changed.

Starts a Valkey with a list of 10,000 boards, of which 1,000 are open, and a streamer. Measures its
memory and CPU time without viewers, with one viewer of each of the 1,000 boards, and while each of
these boards changes every few seconds. The viewers are plain sockets in this process.
"""

import argparse
import asyncio
import json
import socket
import tempfile
import time
from pathlib import Path

from cli.embedded.ports import find_free_port
from cli.embedded.servers import EmbeddedValkey
from scoreboard.model import Board, Partition
from scoreboard.runtime.settings import load
from scoreboard.store.client import make_client
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.store import Store
from tests.bench.machine import cpu_s
from tests.bench.ws.__main__ import memory_kb, open_main, serving
from tests.support.clients.viewer import request_bytes
from tests.support.data.boards import open_board

UNREAD = {"SCOREBOARD_PING_S": "600"}
"""The viewers answer no pings."""

BOARD = b'{"type":"leaderboard"'


async def make_boards(redis_url: str, listed: int, opened: int) -> list[str]:
    await open_main(redis_url)
    names = [f"board-{number}" for number in range(listed)]
    async with make_client(load({"REDIS_URL": redis_url}), name="bench") as client:
        store = Store(client)
        await store.write_boards([Board(), *map(Board, names)])
        scores = [(f"player-{number:0>28}", 1000 - number) for number in range(10)]
        for name in names[:opened]:
            await open_board(store, Board(name), scores=scores)
    return names[:opened]


def connect(port: int, board: str) -> socket.socket:
    viewer = socket.create_connection(("127.0.0.1", port), 10)
    viewer.sendall(request_bytes(f"/ws/scoreboard?board={board}"))
    received = b""
    while BOARD not in received:
        data = viewer.recv(65_536)
        received += data
        assert data, received
        assert received.startswith(b"HTTP/1.1 101"), received
    viewer.setblocking(False)
    return viewer


async def change(redis_url: str, names: list[str], seconds: float, per_s: int) -> int:
    """Change boards in turn; return how many changes were made."""
    async with make_client(load({"REDIS_URL": redis_url}), name="bench") as client:
        began_s, count = time.monotonic(), 0
        while (elapsed_s := time.monotonic() - began_s) < seconds:
            async with client.pipeline(transaction=True) as pipe:
                while count < elapsed_s * per_s:
                    keys = PartitionKeys(Partition(names[count % len(names)]))
                    pipe.zincrby(keys.board, 2**21, f"player-{0:0>28}")
                    pipe.hincrby(keys.meta, "seq", 1)
                    pipe.publish(keys.changes, "1:1")
                    count += 1
                await pipe.execute()
            await asyncio.sleep(0.02)
    return count


def cost(pid: int, seconds: float) -> tuple[float, float]:
    """Return memory in MB, and the share of a core that is used for some time."""
    before_s = cpu_s(pid)
    time.sleep(seconds)
    return memory_kb(pid) / 1024, (cpu_s(pid) - before_s) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ws.boards", description=__doc__)
    parser.add_argument("--listed", type=int, default=10_000)
    parser.add_argument("--watched", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--changes", type=int, default=300, help="changes per second, of all")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedValkey(Path(folder) / "valkey", port=find_free_port()) as server,
    ):
        names = asyncio.run(make_boards(server.url, options.listed, options.watched))
        with serving("ours", server.url, Path(folder), UNREAD) as (port, pid):
            time.sleep(5)
            figures = {"idle": cost(pid, options.seconds)}
            before_s, began_s = cpu_s(pid), time.monotonic()
            viewers = []
            for number, name in enumerate(names):
                viewers.append(connect(port, name))
                time.sleep(max(0.0, began_s + number / 90 - time.monotonic()))
            opened_us = (cpu_s(pid) - before_s) / len(names) * 1e6
            time.sleep(5)
            figures["watched"] = cost(pid, options.seconds)
            before_s = cpu_s(pid)
            count = asyncio.run(change(server.url, names, options.seconds, options.changes))
            changed_us = (cpu_s(pid) - before_s) / count * 1e6
            for viewer in viewers:
                viewer.close()
    print(
        json.dumps(
            {"mb_and_cores": figures, "us_per_opened": opened_us, "us_per_change": changed_us}
        )
    )


if __name__ == "__main__":
    main()
