"""Clients with fixed lists of actions; each logs what it asked and what it was told.

An action whose outcome is unknown (time-out, cut, 503) is repeated with the same ``actionId`` until
the answer is definite, as docs/reference/websocket.md tells client authors. The log is a JSON line
per event, handed to the operating system before the next step, so it outlives this process.
"""

import asyncio
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self

from tests.faults.http import HttpConnection, HttpResponse
from tests.support.eventually import eventually_async

DOCUMENTED = {200, 409, 503}
"""Statuses a well-formed update of a game server may get under any fault (I10)."""

REPEATS = 0.2
"""Share of calls that send an earlier action once more."""


@dataclass
class Told:
    """The answers to one action."""

    points: int
    new_score: int | None = None
    fresh: int = 0
    """Answers with ``"replayed": false``; more than one is a double count (I5)."""


@dataclass
class History:
    """What all clients were told, and everything that should not have happened."""

    actions: dict[tuple[str, str], Told] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    calls: int = 0
    unknown: int = 0
    is_rewound: bool = False
    """Between a Redis that came back older and its repair a repeat may count there as new: I5 is
    suspended, and the ledger alone decides (docs/explanation/durability.md)."""

    @property
    def acknowledged(self) -> int:
        """How many actions were acknowledged."""
        return sum(told.new_score is not None for told in self.actions.values())


class Client:
    """One caller: a list of actions, a connection, a log."""

    def __init__(self, number: int, port: int, token: str, history: History, log: IO[str]) -> None:
        self.number = number
        self._random = random.Random(number)
        self._connection = HttpConnection(port, token)
        self._history = history
        self._log = log
        self._sent = 0
        self.is_resting = False
        self._mine: list[tuple[str, str]] = []

    def plan(self) -> Iterator[tuple[str, str, int]]:
        """Yield this client's actions (user, action, points), the same in every run."""
        while True:
            self._sent += 1
            user = f"player-{self._random.randrange(60)}"
            yield user, f"win:{self.number}-{self._sent}", self._random.randint(1, 50)

    async def run(self, going: asyncio.Event, stop: asyncio.Event, pace_s: float) -> None:
        """Send actions until ``stop``; nothing is left unknown. ``going`` cleared pauses."""
        for user, action, points in self.plan():
            if stop.is_set():
                break
            self.is_resting = not going.is_set()
            await going.wait()
            self.is_resting = False
            await self.settle(user, action, points)
            if self._mine and self._random.random() < REPEATS:
                earlier = self._random.choice(self._mine)
                await self.settle(*earlier, self._history.actions[earlier].points)
            self._mine.append((user, action))
            await asyncio.sleep(pace_s)
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    async def settle(self, user: str, action: str, points: int) -> None:
        """Send one action until its outcome is definite, and compare the answers."""
        told = self._history.actions.setdefault((user, action), Told(points))
        self._note("invoke", user, action)
        while True:
            self._history.calls += 1
            answer = await self._connection.update(user, action, points)
            if answer.status == 200:
                break
            if answer.status not in DOCUMENTED | {0}:
                self._violate(f"I10: {answer.status} for {user} {action}: {answer.body[:200]!r}")
            if answer.status == 409:
                self._violate(f"I5: a conflict for {user} {action}, whose points never changed")
                return
            self._history.unknown += 1
            self._note("unknown", user, action, answer.status)
            await asyncio.sleep(self._random.uniform(0.02, 0.2))
        self._acknowledge(told, user, action, answer)

    def _acknowledge(self, told: Told, user: str, action: str, answer: HttpResponse) -> None:
        reply = json.loads(answer.body)
        self._note("ok", user, action, reply["newScore"])
        if self._history.is_rewound and told.new_score is not None:
            return
        told.fresh += not reply["replayed"]
        if told.fresh > 1:
            self._violate(f"I5: {user} {action} counted as new twice")
        if told.new_score is None:
            told.new_score = reply["newScore"]
        elif told.new_score != reply["newScore"]:
            self._violate(f"I5: {user} {action} got {told.new_score}, then {reply['newScore']}")

    def _violate(self, sentence: str) -> None:
        self._history.violations.append(sentence)

    def _note(self, event: str, user: str, action: str, detail: object = None) -> None:
        self._log.write(json.dumps([event, user, action, detail]) + "\n")
        self._log.flush()


class Load:
    """A number of clients at work against one api."""

    def __init__(self, folder: Path, port: int, token: str, *, clients: int, pace_s: float) -> None:
        self.history = History()
        self._logs = [(folder / f"client-{n}.jsonl").open("w") for n in range(clients)]
        self._clients = [
            Client(n, port, token, self.history, log) for n, log in enumerate(self._logs)
        ]
        self._pace_s = pace_s
        self._going, self._stop = asyncio.Event(), asyncio.Event()
        self._going.set()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(client.run(self._going, self._stop, self._pace_s))
            for client in self._clients
        ]
        return self

    async def __aexit__(self, *exception: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in self._clients:
            await client.close()
        for log in self._logs:
            log.close()

    def check(self) -> None:
        """Raise what ended a client, if anything did."""
        for task in self._tasks:
            if task.done():
                task.result()

    def pause(self) -> None:
        """Pause all clients after their current calls."""
        self._going.clear()

    def resume(self) -> None:
        """Go on after ``pause``."""
        self._going.set()

    async def at_rest(self) -> None:
        """Wait until every client has paused with nothing left unknown."""
        await eventually_async(lambda: all(c.is_resting for c in self._clients), within_s=60)

    async def finish(self, within_s: float = 60) -> None:
        """Stop sending and wait until every outcome is definite."""
        self._stop.set()
        self._going.set()
        async with asyncio.timeout(within_s):
            await asyncio.gather(*self._tasks)
