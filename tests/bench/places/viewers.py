"""The process of tests.bench.ws.viewers, whose viewers can watch a user each.

`python -m tests.bench.places.viewers PORT COUNT EVERY` lets viewer number N watch the user
``user_id(N * EVERY)``; with EVERY 0 none watches. ``end`` prints the boards, and the places as
``[[user id, score, seconds], …]``.
"""

import json
import socket
import sys

from tests.bench.ws.viewers import Viewers
from tests.support.clients.viewer import TEXT, masked_frame


def user_id(number: int) -> str:
    return f"user-{number:0>31}"


class WatchingViewers(Viewers):
    """Viewers of which each watches its own user."""

    def __init__(self, port: int, count: int, every: int) -> None:
        self.every = every
        self.places: list[tuple[str, int, float]] = []
        self.joined = 0
        super().__init__(port, count, 0)

    def join(self, viewers: list[socket.socket]) -> None:
        super().join(viewers)
        for viewer in viewers if self.every else ():
            message = {"type": "watch", "userIds": [user_id(self.joined * self.every)]}
            self.joined += 1
            viewer.send(masked_frame(TEXT, json.dumps(message).encode()))

    def result(self) -> object:
        return [self.seen, self.places]

    def note_other(self, message: bytes, now_s: float) -> None:
        if not message.startswith(b'{"type":"place"'):
            return
        user = message.index(b'"userId":"') + 10
        score = message.index(b'"score":', user) + 8
        self.places.append(
            (
                message[user : message.index(b'"', user)].decode(),
                int(message[score : message.index(b",", score)]),
                now_s,
            )
        )


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:4]]
    WatchingViewers(*numbers).run()
