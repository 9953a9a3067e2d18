"""Clients with fixed lists of actions; each logs its requests and the answers.

An action with an unknown outcome (timeout, reset, 503) is repeated with the same ``actionId`` until
the outcome is known, as the documentation recommends. The log has a JSON line per event, written to
the operating system before the next step.
"""

import asyncio
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, Self

from scoreboard.model import DEFAULT_RULES, Board, Rules
from tests.faults.http import HttpConnection
from tests.support.eventually import eventually_async

DOCUMENTED = {200, 409, 503}
"""The statuses that a valid update of a game server may get during any fault (I10)."""

VALUE_STEP = 1000
"""Values are multiples of it, which corrections are not."""

REPEATS = 0.2
"""The share of calls that repeat an earlier action."""


@dataclass
class ActionAnswers:
    """The answers to one action."""

    points: int
    new_score: int | None = None
    is_refused: bool = False
    """The user was banned: the action must not be in the ledger."""
    is_held: bool = False
    """It exceeded a limit: it must be held, and not in the ledger."""
    is_unchanged: bool = False
    """A value that changed nothing: a reseed forgets it, and a repeat may count later."""
    is_provisional: bool = False
    """Redis, older than the ledger, applied a value that may be worse than the ledger's."""
    was_unknown: bool = False
    """An outcome was unknown: the action may be committed, and unknown to a promoted replica."""
    fresh: int = 0
    """The number of answers with ``"replayed": false``; more than one is a double count (I5)."""


@dataclass
class History:
    """The answers to all clients of a board, and all violations."""

    rules: Rules = DEFAULT_RULES
    board: str = "main"
    partitions: int = 1
    actions: dict[tuple[str, str], ActionAnswers] = field(default_factory=dict)
    stated: set[tuple[str, int]] = field(default_factory=set)
    """Users with the values that they have stated."""
    violations: list[str] = field(default_factory=list)
    calls: int = 0
    unknown: int = 0
    may_rewind: bool = False
    """A replica is promoted that may lack what the ledger has already, but nothing acknowledged."""
    changed: int = 0
    """Actions whose answer changed because a replica was promoted that did not know them."""
    is_rewound: bool = False
    """Between a rewind of Redis and its reseed, Redis may count a repeat as new: I5 does not apply
    (docs/explanation/durability.md)."""

    @property
    def acknowledged(self) -> int:
        """Return the number of acknowledged actions."""
        return sum(
            answers.new_score is not None or answers.is_unchanged
            for answers in self.actions.values()
        )


class Client:
    """A client with a list of actions, a connection and a log."""

    repeat_chance = REPEATS

    def __init__(self, number: int, port: int, token: str, history: History, log: IO[str]) -> None:
        self.number = number
        self._random = random.Random(number)
        self._connection = HttpConnection(
            port, token, "" if history.board == "main" else history.board
        )
        self._history = history
        self._log = log
        self._sent = 0
        self.is_paused = False
        self._own: list[tuple[str, str]] = []

    def plan(self) -> Iterator[tuple[str, str, int]]:
        """Yield this client's actions (user, action, points), the same in every run."""
        while True:
            self._sent += 1
            user = f"player-{self._random.randrange(60)}"
            yield user, f"win:{self.number}-{self._sent}", self._number(user)

    def _number(self, user: str) -> int:
        """Return points, or a value: the values of all clients improve slowly.

        The values of a user differ, also after small corrections. With the operator ``last``, an
        action that states the current score is not in the ledger, so a repeat after a reseed is a
        new action (docs/decisions/0150).
        """
        rules = self._history.rules
        if not rules.takes_values:
            return self._random.randint(1, 50)
        value = VALUE_STEP * (10 * self._sent + self._random.randint(1, 500))
        while (user, value) in self._history.stated:
            value += VALUE_STEP
        self._history.stated.add((user, value))
        return value if rules.order == "highest" else 2_000_000 * VALUE_STEP - value

    async def run(self, going: asyncio.Event, stop: asyncio.Event, pace_s: float) -> None:
        """Send actions until ``stop``, each until its outcome is known; ``going`` pauses."""
        for user, action, points in self.plan():
            if stop.is_set():
                break
            while not going.is_set():  # it may be cleared again before this task runs
                self.is_paused = True
                await going.wait()
            self.is_paused = False
            await self.send_until_known(user, action, points)
            if self._history.actions[user, action].is_refused:
                continue
            if self._own and self._random.random() < self.repeat_chance:
                earlier = self._random.choice(self._own)
                await self.send_until_known(*earlier, self._history.actions[earlier].points)
            self._own.append((user, action))
            await asyncio.sleep(pace_s)
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    async def send_until_known(self, user: str, action: str, points: int) -> None:
        """Send one action until its outcome is known, and compare the answers."""
        answers = self._history.actions.setdefault((user, action), ActionAnswers(points))
        self._log_event("invoke", user, action)
        while True:
            self._history.calls += 1
            answer = await self._connection.update(user, action, points)
            if answer.status == 200:
                break
            if answer.status == 403 and b"/banned" in answer.body:
                self._refuse(answers, user, action)
                return
            if answer.status not in DOCUMENTED | {0}:
                self._add_violation(
                    f"I10: {answer.status} for {user} {action}: {answer.body[:200]!r}"
                )
            if answer.status == 409:
                self._add_violation(
                    f"I5: a conflict for {user} {action}, whose points never changed"
                )
                return
            answers.was_unknown = True
            self._history.unknown += 1
            self._log_event("unknown", user, action, answer.status)
            await asyncio.sleep(self._random.uniform(0.02, 0.2))
        self._acknowledge(answers, user, action, json.loads(answer.body))

    def _refuse(self, answers: ActionAnswers, user: str, action: str) -> None:
        """Note that the user is banned."""
        is_certain = not (answers.is_provisional or self._history.is_rewound)
        if answers.new_score is not None and is_certain:
            self._add_violation(f"I5: {user} {action} counted and is refused now")
        # Otherwise the ledger may have it, although the promoted replica does not know it.
        is_final = not (self._history.may_rewind and answers.was_unknown)
        answers.is_refused = answers.new_score is None and is_final

    def _acknowledge(
        self, answers: ActionAnswers, user: str, action: str, reply: dict[str, Any]
    ) -> None:
        self._log_event("ok", user, action, reply["newScore"])
        if self._history.is_rewound and answers.new_score is not None:
            return
        is_held = reply.get("held", False)
        is_changed = is_held or reply["newScore"] == answers.points
        if self._history.rules.takes_values and not is_changed:
            # It changed nothing, so a reseed forgets its answer (docs/decisions/0150).
            if answers.new_score is not None and not answers.is_provisional:
                self._add_violation(f"I5: {user} {action} counted, and changes nothing now")
            answers.is_unchanged = True
            return
        answers.fresh += not reply["replayed"]
        if answers.fresh > 1:
            self._add_violation(f"I5: {user} {action} counted as new twice")
        if answers.new_score is None:
            answers.new_score, answers.is_held = reply["newScore"], is_held
            answers.is_provisional = self._history.is_rewound
        elif answers.is_held != is_held:
            self._add_violation(f"I5: {user} {action} was held and counted")
        elif answers.new_score != reply["newScore"]:
            if self._history.may_rewind and answers.was_unknown:
                self._history.changed += 1
                answers.new_score = reply["newScore"]
                return
            self._add_violation(
                f"I5: {user} {action} got {answers.new_score}, then {reply['newScore']}"
            )

    def _add_violation(self, sentence: str) -> None:
        self._history.violations.append(sentence)

    def _log_event(self, event: str, user: str, action: str, detail: object = None) -> None:
        self._log.write(json.dumps([event, user, action, detail]) + "\n")
        self._log.flush()


class JointClient(Client):
    """A client whose actions count on several boards, which have different primaries.

    A board that fails is repeated alone, with the same ``actionId``.
    """

    def __init__(
        self, number: int, port: int, token: str, histories: Sequence[History], log: IO[str]
    ) -> None:
        super().__init__(number, port, token, histories[0], log)
        self._histories = {history.board: history for history in histories}

    async def send_until_known(self, user: str, action: str, points: int) -> None:
        """Send one action until the outcomes on all boards are known, and compare the answers."""
        answers = {
            board: history.actions.setdefault((user, action), ActionAnswers(points))
            for board, history in self._histories.items()
        }
        # After its end, a ban would no longer refuse the action.
        waiting = [board for board, told in answers.items() if not told.is_refused]
        self._log_event("invoke", user, action)
        while waiting:
            self._history.calls += 1
            answer = await self._connection.update(user, action, points, waiting)
            if answer.status not in DOCUMENTED | {0, 403}:
                self._add_violation(f"I10: {answer.status} for {user} {action}: {answer.body!r}")
            reply = json.loads(answer.body or "{}")
            if len(waiting) == 1:  # the answer is that of one board
                kind = "scores" if answer.status == 200 else "problems"
                reply = {kind: {waiting[0]: {"score": reply.get("newScore"), "type": "", **reply}}}
            for board, told in reply.get("scores", {}).items():
                with self._at(board):
                    told["newScore"] = told["score"]
                    self._acknowledge(answers[board], user, action, told)
                waiting.remove(board)
            for board, problem in reply.get("problems", {}).items():
                if problem["type"].endswith("/banned"):
                    with self._at(board):
                        self._refuse(answers[board], user, action)
                    waiting.remove(board)
            if not waiting:
                return
            for board in waiting:
                answers[board].was_unknown = True
            self._history.unknown += 1
            self._log_event("unknown", user, action, answer.status)
            await asyncio.sleep(self._random.uniform(0.02, 0.2))

    @contextmanager
    def _at(self, board: str) -> Iterator[None]:
        """Use the history of a board."""
        first, self._history = self._history, self._histories[board]
        try:
            yield
        finally:
            self._history = first


class Part(Protocol):
    """A part of a load, such as a client."""

    is_paused: bool

    async def run(self, going: asyncio.Event, stop: asyncio.Event, pace_s: float) -> None:
        """Run until ``stop``; ``going`` pauses."""
        ...

    async def close(self) -> None:
        """Close connections."""
        ...


class Load:
    """A number of clients that send updates to one api, each of them to one board."""

    def __init__(
        self,
        folder: Path,
        port: int,
        token: str,
        *,
        clients: int,
        pace_s: float,
        make: type[Client] = Client,
        rules: Rules = DEFAULT_RULES,
        boards: Sequence[Board] = (),
    ) -> None:
        """Without ``boards``, all clients update the default board, which has ``rules``."""
        self.histories = [
            History(board.layout.rules, board.name, board.layout.partitions) for board in boards
        ] or [History(rules)]
        self._logs = [(folder / f"client-{n}.jsonl").open("w") for n in range(clients)]
        self._clients: list[Part] = [
            make(n, port, token, self.histories[n % len(self.histories)], log)
            for n, log in enumerate(self._logs)
        ]
        self._folder, self._port, self._token = folder, port, token
        self._pace_s = pace_s
        self._going, self._stop = asyncio.Event(), asyncio.Event()
        self._going.set()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def history(self) -> History:
        """Return the answers about the first board."""
        return self.histories[0]

    def add(self, part: Part) -> None:
        """Add a part before the load is started."""
        self._clients.append(part)

    def add_joint_client(self) -> None:
        """Add a client that updates all boards at once."""
        number = len(self._logs)
        log = (self._folder / f"client-{number}.jsonl").open("w")
        self._logs.append(log)
        self.add(JointClient(number, self._port, self._token, self.histories, log))

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
        """Raise the error of a client that has ended."""
        for task in self._tasks:
            if task.done():
                task.result()

    def pause(self) -> None:
        """Pause all clients after their current calls."""
        self._going.clear()

    def resume(self) -> None:
        """Continue after ``pause``."""
        self._going.set()

    async def wait_until_paused(self) -> None:
        """Wait until every client has paused and every outcome is known."""
        await eventually_async(lambda: all(c.is_paused for c in self._clients), within_s=60)

    async def finish(self, within_s: float = 60) -> None:
        """Stop sending and wait until every outcome is known."""
        self._stop.set()
        self._going.set()
        async with asyncio.timeout(within_s):
            await asyncio.gather(*self._tasks)
