"""A process with many minimal viewers: connect, read, record the time, answer pings.

`python -m tests.bench.ws.viewers PORT COUNT STALLED [SUBPROTOCOL]` reads commands from standard
input: ``begin`` discards what was recorded so far, ``end`` prints one line of JSON, ``[[seq,
seconds, milliseconds since it was built], …]``, and exits. It uses raw sockets and one epoll,
because the viewers compete with the server for CPU time.
"""

import json
import os
import selectors
import socket
import sys
import time

from tests.support.clients.viewer import masked_frame, request_bytes

PONG = 10
BOARDS = (b'{"type":"leaderboard"', b'{"type":"delta"')
PENDING = 200
"""The limit of concurrent handshakes."""


class Viewers:
    """The viewers by file descriptor, each with its unparsed bytes."""

    def __init__(self, port: int, count: int, stalled: int, subprotocol: str | None = None) -> None:
        self.port = port
        self.request = request_bytes(subprotocols=subprotocol)
        self.selector = selectors.DefaultSelector()
        self.rest: dict[int, bytes] = {}
        self.seen: list[tuple[int, float, float]] = []
        self.stalled: list[socket.socket] = []
        for start in range(0, count, PENDING):
            self.join([self.connect() for _ in range(min(PENDING, count - start))])
        for _ in range(stalled):
            viewer = self.connect(receive_bytes=4096)
            viewer.recv(1)  # stalled: its handshake is done, nothing more is read
            self.stalled.append(viewer)

    def connect(self, receive_bytes: int = 0) -> socket.socket:
        viewer = socket.socket()
        if receive_bytes:
            viewer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        viewer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        viewer.settimeout(30)
        viewer.connect(("127.0.0.1", self.port))
        viewer.sendall(self.request)
        return viewer

    def join(self, viewers: list[socket.socket]) -> None:
        for viewer in viewers:
            head = b""
            while b"\r\n\r\n" not in head:
                data = viewer.recv(4096)
                assert data, head
                head += data
            assert head.startswith(b"HTTP/1.1 101"), head
            viewer.setblocking(False)
            self.rest[viewer.fileno()] = head.partition(b"\r\n\r\n")[2]
            self.selector.register(viewer, selectors.EVENT_READ)

    def run(self) -> None:
        os.set_blocking(sys.stdin.fileno(), False)
        self.selector.register(sys.stdin, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is sys.stdin:
                    word = sys.stdin.readline().strip()
                    if word == "begin":
                        self.seen = []
                    else:
                        print(json.dumps(self.result()), flush=True)
                        return
                else:
                    self.read(key.fileobj)  # type: ignore[arg-type]

    def result(self) -> object:
        return self.seen

    def note_other(self, message: bytes, now_s: float) -> None:
        """Record a message that is no board."""

    def read(self, viewer: socket.socket) -> None:
        number = viewer.fileno()
        try:
            data = viewer.recv(65_536)
        except OSError:
            data = b""
        if not data:
            self.selector.unregister(viewer)
            return
        now_s, now_ms = time.monotonic(), time.time() * 1000
        if self.rest[number]:
            data = self.rest[number] + data
        at = 0
        while len(data) - at >= 2:
            size, start = data[at + 1], at + 2
            if size == 126:
                size, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
            if len(data) < start + size:
                break
            if data[at] == 0x81:
                where = data.find(b'"seq":', start)
                if where >= 0 and data.startswith(BOARDS, start):
                    end = data.index(b",", where)
                    built_ms = int(data[end + 6 : data.index(b",", end + 6)])
                    self.seen.append((int(data[where + 6 : end]), now_s, now_ms - built_ms))
                elif where >= 0:
                    self.note_other(data[start : start + size], now_s)
            elif data[at] == 0x89:
                viewer.send(masked_frame(PONG, data[start : start + size]))
            at = start + size
        self.rest[number] = data[at:]


if __name__ == "__main__":
    Viewers(*(int(word) for word in sys.argv[1:4]), *sys.argv[4:]).run()
