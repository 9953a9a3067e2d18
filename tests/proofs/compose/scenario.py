"""What an operator does with docker-compose.yml, and what must hold after each step.

`make smoke` and `make prove-compose` run the same steps, in this order. Each step leaves the
project running.
"""

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import httpx
from websockets.sync.client import connect

from tests.proofs.compose.stack import Fault, Stack

POINTS = 10
PACE_S = 0.1
LIMIT_PER_MINUTE = 10
KILLED = ("api", "streamer", "flusher", "valkey", "postgres", "kong")
RESTARTED = ("api", "streamer", "flusher", "valkey", "postgres", "kong", "kong-sync", "oauth")
PLAYERS = ("ann", "ben", "cleo")
ANSWER_S = 120


Step = tuple[str, Callable[[], None]]


@dataclass
class Load:
    """Updates of a game server through the gateway, each repeated until it is acknowledged."""

    stack: Stack
    counted: Counter[str] = field(default_factory=Counter)
    """Acknowledged actions by user, over all times that it ran."""

    repeated: int = 0
    _number: Iterator[int] = field(default_factory=itertools.count)
    _fault: Fault | None = None
    _is_abandoned: bool = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Send updates during the block; every one is acknowledged when it ends."""
        stop = threading.Event()
        thread = threading.Thread(target=self._send, args=(stop,))
        thread.start()
        try:
            yield
        except BaseException:
            self._is_abandoned = True
            raise
        finally:
            stop.set()
            thread.join(ANSWER_S + 30)
        if self._fault is not None:
            raise self._fault

    def _send(self, stop: threading.Event) -> None:
        token = ""
        for user in itertools.cycle(PLAYERS):
            if stop.wait(PACE_S):
                return
            action = f"win:{self.stack.name}:{next(self._number)}"
            deadline, problem = time.monotonic() + ANSWER_S, ""
            while not self._is_abandoned:
                if time.monotonic() > deadline:
                    text = f"{action} was not acknowledged within {ANSWER_S} s: {problem}"
                    self._fault = self.stack.fault(text, "kong", "api")
                    return
                try:
                    token = token or self.stack.token("game-server")
                    answer = self.stack.update(token, user, action)
                except httpx.HTTPError as error:
                    problem = repr(error)
                else:
                    if answer.status_code == 200:
                        break
                    problem = f"{answer.status_code} {answer.text[:300]}"
                    if answer.status_code == 401:
                        token = ""  # it lives for an hour
                self.repeated += 1
                time.sleep(PACE_S)
            self.counted[user] += 1


@dataclass
class Scenario:
    """The steps; ``more`` are those of the proof, before the project is stopped."""

    stack: Stack
    load: Load
    say: Callable[[str], None]
    more: list[Step] = field(default_factory=list)

    # Start ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything from nothing with the command of the README."""
        assert not self.stack.left(), "the project exists already"
        self.stack.up()

    def one_update(self) -> None:
        """Send an update through the gateway to PostgreSQL and to a viewer, and repeat it."""
        token = self.stack.token("alice")
        address = self.stack.gateway.replace("http://", "ws://") + "/ws/scoreboard"
        with connect(address, subprotocols=["scoreboard.v1"], proxy=None) as viewer:
            first = self.stack.update(token, "alice", "win:first")
            again = self.stack.update(token, "alice", "win:first")
            for answer, replayed in ((first, False), (again, True)):
                if answer.status_code != 200:
                    raise self.stack.fault(f"{answer.status_code} {answer.text}", "kong", "api")
                expected = {"success": True, "newScore": POINTS, "replayed": replayed}
                assert answer.json() == expected, answer.text
            deadline = time.monotonic() + 30
            while True:
                frame = json.loads(viewer.recv(timeout=deadline - time.monotonic()))
                if {"rank": 1, "userId": "alice", "score": POINTS} in frame.get("leaderboard", ()):
                    break
        self.load.counted["alice"] += 1
        self._in_postgres()

    def limits(self) -> None:
        """Refuse the updates above the limit of a minute."""
        token = self.stack.token("bob")
        found: Counter[int] = Counter()
        for number in range(2 * LIMIT_PER_MINUTE + 1):  # the minute may change once
            answer = self.stack.update(token, "bob", f"win:{number}")
            found[answer.status_code] += 1
            if answer.status_code == 429:
                break
        assert set(found) == {200, 429}, found
        assert found[200] >= LIMIT_PER_MINUTE, found
        self.load.counted["bob"] += found[200]

    def admin_api(self) -> None:
        """Reach the Admin API of Kong from kong-sync, and from nothing else."""
        kong = self.stack.containers()["kong"]
        networks = kong["NetworkSettings"]["Networks"]
        addresses = {name.partition("_")[2]: one["IPAddress"] for name, one in networks.items()}
        assert set(addresses) == {"inside", "counters", "admin"}
        program = (
            "import sys, urllib.error, urllib.request\n"
            "try:\n"
            "    answer = urllib.request.urlopen(sys.argv[1], timeout=3)\n"
            "except urllib.error.HTTPError as error:\n"
            "    answer = error\n"
            "except OSError:\n"
            "    sys.exit('no answer')\n"
            "print(answer.headers.get('Server'))"
        )

        def server(service: str, address: str) -> str:
            words = ("docker", "compose", "exec", "-T", service, "python", "-c", program)
            return self.stack.run(*words, f"http://{address}:8001/", check=False).strip().lower()

        assert "kong" in server("kong-sync", addresses["admin"])
        for address in addresses.values():
            assert "kong" not in server("api", address), address
            with suppress(httpx.HTTPError):
                answer = httpx.get(f"http://{address}:8001/", timeout=3, trust_env=False)
                assert "kong" not in answer.headers.get("Server", "").lower(), address

    def administer(self) -> None:
        """Start the api for administrators, change a score before a viewer's eyes, and stop it."""
        stack = self.stack
        given = stack.variables
        stack.variables = given | {"ADMIN_TARGET": "admin:8000"}
        # The gateway's routes change with the target, and its synchronisation sends them to Kong.
        up = ("up", "--detach", "--wait", "--no-deps", "--no-build")
        stack.compose("--profile", "admin", *up, "admin", "kong-sync")
        token = stack.token("administrator")
        stack.wait(
            lambda: self._administer(token, "GET", "status").status_code == 200,
            "the gateway has no route to the api for administrators",
            "kong-sync",
            "admin",
        )
        found = self._administer(token, "GET", "status").json()
        assert [one["state"] for one in found["processes"]] == ["ready"] * 3, found
        address = stack.gateway.replace("http://", "ws://") + "/ws/scoreboard"
        scores = self._scores()
        acts: list[dict[str, object]] = [
            {"kind": "correct", "board": "main", "userId": "alice", "delta": 5},
            {"kind": "undo", "act": "0" * 15 + "1"},
        ]
        with connect(address, subprotocols=["scoreboard.v1"], proxy=None) as viewer:
            for number, act in enumerate(acts, start=1):
                sent = act | {"id": f"{number:016x}", "reason": "proof"}
                answer = self._administer(token, "POST", "acts", sent)
                if answer.status_code != 200:
                    raise stack.fault(f"{answer.status_code} {answer.text}", "kong", "admin")
                score = scores["alice"] + (5 if number == 1 else 0)
                deadline = time.monotonic() + 30
                while True:
                    frame = json.loads(viewer.recv(timeout=deadline - time.monotonic()))
                    rows = {row["userId"]: row["score"] for row in frame.get("leaderboard", ())}
                    if rows.get("alice") == score:
                        break
        assert self._administer(stack.token("alice"), "GET", "status").status_code == 403
        stack.compose("--profile", "admin", "rm", "--stop", "--force", "admin")
        stack.variables = given
        stack.compose(*up, "kong-sync")
        stack.wait(
            lambda: self._administer(token, "GET", "status").status_code == 404,
            "the gateway still has a route to administrators",
            "kong-sync",
        )
        self._in_postgres()

    # Faults -----------------------------------------------------------------------------------

    def kill(self, service: str) -> None:
        """Kill one service under load; Docker restarts it."""
        with self.load.running():
            self.stack.kill(service)
            self.is_served()

    def restart(self) -> None:
        """Restart single services under load."""
        with self.load.running():
            for service in RESTARTED:
                self.say(f"  {service}")
                self.stack.compose("restart", "--no-deps", service)
                self.stack.wait_healthy(service)
            self.stack.wait_healthy(*self.stack.long_running())
            self.is_served()
        # The provider was restarted; its key must be the one that the services know.
        answer = self.stack.update(self.stack.token("alice"), "alice", "win:first")
        assert answer.status_code == 200, answer.text

    def rotate(self) -> None:
        """Rotate the secrets of PostgreSQL, Valkey and Kong's counters under load."""
        with self.load.running():
            for words in (
                ("rotate", "db"),
                ("rotate", "redis"),
                ("rotate-kong", "rotate", "kong"),
            ):
                self.say(f"  {' '.join(words)}")
                self.stack.compose("run", "--rm", "-T", *words, within_s=600)
            self.is_served()
            self.stack.wait_healthy(*self.stack.long_running())
        self.say("  restart with the new passwords")
        with self.load.running():
            self.stack.compose("restart", "--no-deps", "kong", "valkey", "valkey-counters", "api")
            self.stack.wait_healthy(*self.stack.long_running())
            self.is_served()

    def comes_back(self, restart_engine: Callable[[], None], *others: Stack) -> None:
        """Restart the engine; every service comes back without a command."""
        services = {stack: stack.long_running() for stack in (self.stack, *others)}
        with self.load.running():
            self.is_served()
        restart_engine()
        for stack, names in services.items():
            stack.wait_healthy(*names)
        with self.load.running():
            self.is_served()

    # Commands that must be harmless -------------------------------------------------------------

    def up_again(self) -> None:
        """Run the command of the README again; no container is replaced or restarted."""
        before = self._identities()
        self.stack.up()
        after = self._identities()
        assert after == before, {name for name in before if after.get(name) != before[name]}

    def down_and_up(self) -> None:
        """Remove all containers and start again; the data are the same."""
        before = self._scores()
        self.stack.compose("--profile", "*", "down")
        assert not self.stack.containers()
        self.stack.up()
        assert self._scores() == before
        with self.load.running():
            self.is_served()

    def everything_counted_once(self) -> None:
        """Compare all scores with the acknowledged actions, and Redis with PostgreSQL."""
        self._in_postgres()
        self.stack.scoreboard("verify", "--full")
        answer = httpx.get(
            f"{self.stack.gateway}/api/scores/leaderboard", timeout=10, trust_env=False
        )
        board = {row["userId"]: row["score"] for row in answer.json()["leaderboard"]}
        assert board == {user: POINTS * n for user, n in self.load.counted.items()}, board
        total = sum(self.load.counted.values())
        self.say(f"  {total} actions counted once; {self.load.repeated} requests were repeated")

    def remove(self) -> None:
        """Remove the project with its data; nothing of it is left."""
        self.stack.remove()
        assert not self.stack.left(), self.stack.left()

    # Parts ------------------------------------------------------------------------------------

    def is_served(self) -> None:
        """Wait until updates that were sent from now on are acknowledged."""
        wanted = sum(self.load.counted.values()) + 10
        self.stack.wait(
            lambda: sum(self.load.counted.values()) >= wanted,
            "updates through the gateway are not acknowledged",
            "kong",
            "api",
        )

    def _administer(
        self, token: str, method: str, path: str, body: object = None
    ) -> httpx.Response:
        """Send a request of an administrator through the gateway."""
        return httpx.request(
            method,
            f"{self.stack.gateway}/api/admin/{path}",
            json=body,
            headers={"Authorization": f"Bearer {token}"},
            timeout=20,
            trust_env=False,
        )

    def _scores(self) -> dict[str, int]:
        rows = self.stack.query(
            "SELECT external_id, score FROM scores JOIN users ON users.id = user_id"
        )
        return {user: int(score) for user, _, score in (row.partition("|") for row in rows.split())}

    def _in_postgres(self) -> None:
        expected = {user: POINTS * number for user, number in self.load.counted.items()}
        self.stack.wait(
            lambda: self._scores() == expected,
            f"the scores in PostgreSQL are not those of the acknowledged actions: {expected}",
            "flusher",
            within_s=60,
        )

    def _identities(self) -> dict[str, tuple[str, str]]:
        """Return id and start of each container that stays up."""
        services = self.stack.long_running()
        return {
            name: (one["Id"], one["State"]["StartedAt"])
            for name, one in self.stack.containers().items()
            if name in services
        }


def steps(scenario: Scenario) -> list[Step]:
    """Return the steps by name."""
    return [
        ("start from nothing", scenario.start),
        ("an update reaches PostgreSQL and a viewer", scenario.one_update),
        ("updates above the limit are refused", scenario.limits),
        ("the Admin API is closed", scenario.admin_api),
        *((f"kill {name}", lambda name=name: scenario.kill(name)) for name in KILLED),
        ("restart single services", scenario.restart),
        ("rotate secrets", scenario.rotate),
        ("an administrator changes a score", scenario.administer),
        ("every action is counted once", scenario.everything_counted_once),
        ("a second up changes nothing", scenario.up_again),
        *scenario.more,
        ("down keeps the data", scenario.down_and_up),
        ("every action is still counted once", scenario.everything_counted_once),
        ("down -v leaves nothing", scenario.remove),
    ]
