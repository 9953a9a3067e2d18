"""A process that opens viewers at a fixed rate and closes each after its first board.

`python -m tests.bench.ws.handshakes PORT RATE SECONDS` prints one line of JSON: the number of
handshakes, and the milliseconds from connect to the first board. The rate is an open loop: a late
handshake does not delay the next one.
"""

import json
import selectors
import socket
import sys
import time

from tests.support.clients.viewer import request_bytes

BOARD = b'{"type":"leaderboard"'
# What a browser sends.
REQUEST = request_bytes(
    subprotocols="scoreboard.v1",
    headers=[
        ("Accept-Encoding", "gzip, deflate, br"),
        ("Accept-Language", "en-US,en;q=0.9"),
        ("Cache-Control", "no-cache"),
        ("Pragma", "no-cache"),
        ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
        ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),
    ],
)


def run(port: int, rate: float, seconds: float) -> tuple[int, list[float]]:
    selector = selectors.DefaultSelector()
    began: dict[int, float] = {}
    received: dict[int, bytes] = {}
    took_ms: list[float] = []
    count = 0
    start_s = time.monotonic()
    while (elapsed_s := time.monotonic() - start_s) < seconds or began:
        due = int(min(elapsed_s, seconds) * rate)
        while count < due:
            count += 1
            viewer = socket.socket()
            began_s = time.monotonic()
            viewer.connect(("127.0.0.1", port))
            viewer.sendall(REQUEST)
            viewer.setblocking(False)
            selector.register(viewer, selectors.EVENT_READ)
            began[viewer.fileno()] = began_s
        assert elapsed_s < seconds + 30, f"{len(began)} viewers got no board"
        for key, _ in selector.select(0.001):
            viewer = key.fileobj
            assert isinstance(viewer, socket.socket)
            data = received[viewer.fileno()] = received.get(viewer.fileno(), b"") + viewer.recv(
                65_536
            )
            assert data.startswith(b"HTTP/1.1 101"), data
            if BOARD not in data:
                continue
            del received[viewer.fileno()]
            took_ms.append((time.monotonic() - began.pop(viewer.fileno())) * 1000)
            selector.unregister(viewer)
            viewer.close()
    return count, took_ms


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))))
