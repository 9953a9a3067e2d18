"""Clients that use every part of the system at once, and count what fails."""

import http.client
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import websockets
from websockets.sync.client import connect

from tests.support.servers.system import System

POINTS = 5
PACE_S = 0.02
"""The pause of each client, so that the load leaves the machine to what is tested."""


class Load:
    """Updates of several users, reads, one event stream and one viewer.

    A failed update is repeated with the same action until it succeeds, as clients must.
    """

    def __init__(self, system: System, *, users: int = 3) -> None:
        self._system = system
        self._host = system.api.removeprefix("http://")
        self._stop = threading.Event()
        self._headers = {"Content-Type": "application/json", **system.game_server()}
        self.updates: Counter[str] = Counter()
        """Acknowledged actions by user."""
        self.reads = 0
        self.frames = 0
        self.events = 0
        self.failures: Counter[str] = Counter()
        """Failed calls by their kind."""
        self.slowest_s = 0.0
        self._threads = [
            *(threading.Thread(target=self._update, args=(f"user{n}",)) for n in range(users)),
            threading.Thread(target=self._read),
            threading.Thread(target=self._stream),
            threading.Thread(target=self._watch),
        ]

    @contextmanager
    def running(self) -> Iterator["Load"]:
        """Run the load until the block ends."""
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(timeout=20)

    def _update(self, user: str) -> None:
        with closing(http.client.HTTPConnection(self._host, timeout=30)) as connection:
            for number in itertools.count():
                body = json.dumps({"userId": user, "actionId": f"win:{number}", "points": POINTS})
                while True:
                    began_s = time.monotonic()
                    status, answer = self._ask(connection, "POST", "/api/scores/update", body)
                    self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
                    if status == 200:
                        break
                    self.failures[f"update {status} {answer}"] += 1
                    time.sleep(0.05)
                self.updates[user] += 1
                if self._stop.wait(PACE_S):
                    return

    def _read(self) -> None:
        path = "/api/scores/leaderboard?limit=10&names=true"
        with closing(http.client.HTTPConnection(self._host, timeout=30)) as connection:
            while not self._stop.wait(2 * PACE_S):
                status, answer = self._ask(connection, "GET", path)
                if status == 200:
                    self.reads += 1
                else:
                    self.failures[f"read {status} {answer}"] += 1

    def _ask(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: str = ""
    ) -> tuple[int, str]:
        """Return the status and, of an error, its kind."""
        try:
            connection.request(method, path, body or None, self._headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return 0, type(error).__name__
        return response.status, "" if response.status == 200 else str(answer["type"]).rpartition(
            "/"
        )[2]

    def _stream(self) -> None:
        with closing(http.client.HTTPConnection(self._host, timeout=20)) as connection:
            connection.request("GET", "/api/scores/stream", headers=self._headers)
            with connection.getresponse() as response:
                while not self._stop.is_set():
                    line = response.readline()
                    if not line:
                        self.failures["event stream ended"] += 1
                        return
                    self.events += line.startswith(b"data:")
                    if b'"stale"' in line:
                        self.failures["event stream stale"] += 1

    def _watch(self) -> None:
        with connect(
            self._system.ws,
            subprotocols=[websockets.Subprotocol("scoreboard.v1")],
            proxy=None,
        ) as viewer:
            while not self._stop.is_set():
                try:
                    frame = json.loads(viewer.recv(timeout=0.5))
                except TimeoutError:
                    continue
                except websockets.WebSocketException:
                    self.failures["viewer closed"] += 1
                    return
                self.frames += frame["type"] == "leaderboard"
                if frame.get("state") == "stale":
                    self.failures["viewer stale"] += 1
            with suppress(websockets.WebSocketException):
                viewer.close()
