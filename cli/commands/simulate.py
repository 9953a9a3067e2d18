"""`scoreboard simulate`: players who play over HTTP, so that there is something to see.

Started by `scoreboard up --simulate N`. They act through a game server's token, at the pace of
people, below ten actions a minute each. Every answer that is not final is asked for again with the
same actionId, as a real client should.
"""

import asyncio
import random
import time
from itertools import count
from pathlib import Path
from typing import Any, Final

import click
import httpx
import msgspec
from msgspec import Struct

from cli.output import print_message
from cli.parameters import Seconds
from cli.running.default_actions import SIMULATED_POINTS
from cli.target import data_dir_option, load_audience, load_issuer, load_running_system
from scoreboard.errors import OperatorMistake, Unavailable
from scoreboard.runtime.lifecycle import StopEvent, backoff_s, supervise
from scoreboard.security.tokens import UPDATE_ANY, LocalIssuer

NAMES: Final = tuple(
    """
    ada alan anita annie barbara claude donald edsger evelyn frances grace hedy jean joan john
    karen katherine ken leslie lynn margaret mary niklaus radia ruth shafi sophie stephen sue tim
    """.split()  # noqa: SIM905 (read as a list of names)
)
KINDS: Final = ("kill", "kill", "kill", "quest", "quest", "win", "bonus")
MEAN_S: Final = 7.0
"""Mean time between two actions of a player; with LEAST_S some eight a minute."""
LEAST_S: Final = 1.5
REPEAT_SHARE: Final = 0.04
"""Share of actions sent twice, as over a bad network: the second must count nothing."""
TOKEN_S: Final = 3600
RENEW_S: Final = 600
TIMEOUT_S: Final = 5.0
RETRY_MAX_S: Final = 60.0
PORT_MAX: Final = 65_535
SECONDS_MAX: Final = 31_536_000


class Tally(Struct):
    """What happened so far; ``reason`` is why the last action that did not count did not."""

    counted: int = 0
    replayed: int = 0
    refused: int = 0
    repeated: int = 0
    reason: str = ""


class Players:
    """Players of one game server."""

    def __init__(
        self, api: str, issuer: LocalIssuer, audience: str, *, players: int, seed: int | None
    ) -> None:
        self.tally = Tally()
        self._address = f"{api}/api/scores/update"
        self._issuer = issuer
        self._audience = audience
        self._names = [_name(number) for number in range(players)]
        self._random = random.Random(seed)  # noqa: S311 (a game)
        self._numbers = count(1)
        self._run = f"{time.time_ns():x}"
        self._token = ""
        self._expires_at_s = 0.0

    async def play(self, stop: StopEvent) -> None:
        """Play until ``stop``."""
        limits = httpx.Limits(max_connections=16)
        async with (
            httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits, trust_env=False) as client,
            asyncio.TaskGroup() as group,
        ):
            for name in self._names:
                group.create_task(self._play_one(client, name, stop))

    async def _play_one(self, client: httpx.AsyncClient, name: str, stop: StopEvent) -> None:
        # A skill of one's own makes leaders; the dice make them change.
        skill = self._random.uniform(0.7, 1.4)
        while not await stop.sleep(LEAST_S + self._random.expovariate(skill / (MEAN_S - LEAST_S))):
            kind = self._random.choice(KINDS)
            body = msgspec.json.encode(
                {
                    "userId": name,
                    "actionId": f"{kind}:{self._run}-{next(self._numbers)}",
                    "points": SIMULATED_POINTS[kind],
                }
            )
            for _ in range(2 if self._random.random() < REPEAT_SHARE else 1):
                await self._send(client, body, stop)

    async def _send(self, client: httpx.AsyncClient, body: bytes, stop: StopEvent) -> None:
        """Send one action until its outcome is known, or until ``stop``."""
        attempt = 0
        while not stop.is_set:
            wait_s = backoff_s(attempt)
            try:
                answer = await client.post(self._address, content=body, headers=self._headers())
            except httpx.HTTPError as error:
                # The outcome is unknown: the same action again.
                self.tally.reason = str(error) or type(error).__name__
            else:
                if answer.status_code == 200 and (is_replay := _is_replay(answer)) is not None:
                    if is_replay:
                        self.tally.replayed += 1
                    else:
                        self.tally.counted += 1
                    return
                self.tally.reason = _reason_of(answer)
                if answer.status_code not in {429, 503}:
                    self.tally.refused += 1
                    return
                wait_s = _wait_of(answer, wait_s)
            self.tally.repeated += 1
            attempt += 1
            await stop.sleep(wait_s)

    def _headers(self) -> dict[str, str]:
        now_s = time.time()
        if now_s > self._expires_at_s - RENEW_S:
            self._token = self._issuer.issue(
                "simulation", [UPDATE_ANY], TOKEN_S, audience=self._audience
            )
            self._expires_at_s = now_s + TOKEN_S
        return {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}


@click.command()
@click.option("--players", type=click.IntRange(1, 10_000), default=20, show_default=True,
              help="How many play.")  # fmt: skip
@click.option("--api", help="The api, http:// or https://; default: that of the running `up`.")
@click.option("--seconds", type=Seconds(0, SECONDS_MAX), default=0.0,
              help="End after so long; 0: play on.")  # fmt: skip
@click.option("--seed", type=int, help="Play the same game again.")
@data_dir_option
def simulate(
    *, players: int, api: str | None, seconds: float, seed: int | None, data_dir: Path
) -> None:
    """Let players play until Ctrl-C, or for a while.

    Fails where actions were sent and none counted.
    """
    if api is None:
        api = load_running_system(data_dir, "--api").api
    elif not _is_address(api):
        raise click.BadParameter("the api is an http:// or https:// address", param_hint="'--api'")
    issuer, audience = load_issuer(data_dir), load_audience(data_dir)
    game = Players(api.rstrip("/"), issuer, audience, players=players, seed=seed)

    async def serve(stop: StopEvent) -> None:
        if seconds:
            asyncio.get_running_loop().call_later(seconds, stop.set)
        await game.play(stop)

    asyncio.run(supervise(serve, grace_s=TIMEOUT_S + 1))
    tally = game.tally
    print_message(
        f"{players} players: {tally.counted} actions counted, {tally.replayed} replayed, "
        f"{tally.refused} refused, {tally.repeated} tries repeated"
    )
    if tally.counted or tally.replayed:
        return
    if tally.refused:
        raise OperatorMistake(f"{api} counted no action: {tally.reason}")
    if tally.repeated:
        raise Unavailable(f"{api} counted no action: {tally.reason}")


def _is_address(url: str) -> bool:
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    is_port = parts.port is None or 1 <= parts.port <= PORT_MAX
    return parts.scheme in {"http", "https"} and bool(parts.host) and is_port


def _is_replay(answer: httpx.Response) -> bool | None:
    """Tell whether an action had counted before; None where this is not the answer of an api."""
    try:
        outcome: Any = answer.json()
        return bool(outcome["replayed"])
    except (ValueError, KeyError, TypeError):
        return None


def _reason_of(answer: httpx.Response) -> str:
    """Return what an answer that is not a success says."""
    try:
        problem: Any = answer.json()
        words = str(problem["detail"])
    except (ValueError, KeyError, TypeError):
        words = answer.reason_phrase
    return f"{answer.status_code} {words}"


def _wait_of(answer: httpx.Response, otherwise_s: float) -> float:
    try:
        return min(float(answer.headers["Retry-After"]), RETRY_MAX_S)
    except (KeyError, ValueError):
        return otherwise_s


def _name(number: int) -> str:
    round_, place = divmod(number, len(NAMES))
    return f"{NAMES[place]}-{round_ + 1}" if round_ else NAMES[place]
