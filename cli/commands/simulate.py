"""`scoreboard simulate`: simulated players that send updates over HTTP.

They use the token of a game server and act at the pace of people, fewer than ten actions a minute
each. As in a real client, a retry after a temporary failure has the same actionId.
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
INTERVAL_MEAN_S: Final = 7.0
"""Mean time between two actions of a player: about eight a minute."""
INTERVAL_MIN_S: Final = 1.5
REPEAT_SHARE: Final = 0.04
"""Share of actions sent twice, as over a bad network; the second must not count."""
TOKEN_LIFE_S: Final = 3600
TOKEN_RENEW_S: Final = 600
"""Remaining life of a token at which it is replaced."""
TIMEOUT_S: Final = 5.0
RETRY_AFTER_MAX_S: Final = 60.0
PORT_MAX: Final = 65_535
SECONDS_MAX: Final = 31_536_000


class Counts(Struct):
    """Numbers of actions by outcome; ``reason`` is of the last action that was not counted."""

    counted: int = 0
    replayed: int = 0
    refused: int = 0
    retries: int = 0
    reason: str = ""


class Simulation:
    """Players of one game server."""

    def __init__(
        self, api: str, issuer: LocalIssuer, audience: str, *, players: int, seed: int | None
    ) -> None:
        self.counts = Counts()
        self._address = f"{api}/api/scores/update"
        self._issuer = issuer
        self._audience = audience
        self._names = [_name(number) for number in range(players)]
        self._random = random.Random(seed)  # noqa: S311 (a game)
        self._numbers = count(1)
        self._run = f"{time.time_ns():x}"
        self._token = ""
        self._expires_at_s = 0.0

    async def run(self, stop: StopEvent) -> None:
        """Play until ``stop``."""
        limits = httpx.Limits(max_connections=16)
        async with (
            httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits, trust_env=False) as client,
            asyncio.TaskGroup() as group,
        ):
            for name in self._names:
                group.create_task(self._play(client, name, stop))

    async def _play(self, client: httpx.AsyncClient, name: str, stop: StopEvent) -> None:
        # Different rates make leaders; the randomness makes them change.
        rate = self._random.uniform(0.7, 1.4) / (INTERVAL_MEAN_S - INTERVAL_MIN_S)
        while not await stop.sleep(INTERVAL_MIN_S + self._random.expovariate(rate)):
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
                response = await client.post(self._address, content=body, headers=self._headers())
            except httpx.HTTPError as error:
                # The outcome is unknown, so the same action is sent again.
                self.counts.reason = str(error) or type(error).__name__
            else:
                if response.status_code == 200 and (is_replay := _is_replay(response)) is not None:
                    if is_replay:
                        self.counts.replayed += 1
                    else:
                        self.counts.counted += 1
                    return
                self.counts.reason = _reason_of(response)
                if response.status_code not in {429, 503}:
                    self.counts.refused += 1
                    return
                wait_s = _retry_after_s(response, wait_s)
            self.counts.retries += 1
            attempt += 1
            await stop.sleep(wait_s)

    def _headers(self) -> dict[str, str]:
        now_s = time.time()
        if now_s > self._expires_at_s - TOKEN_RENEW_S:
            self._token = self._issuer.issue(
                "simulation", [UPDATE_ANY], TOKEN_LIFE_S, audience=self._audience
            )
            self._expires_at_s = now_s + TOKEN_LIFE_S
        return {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}


@click.command()
@click.option("--players", type=click.IntRange(1, 10_000), default=20, show_default=True,
              help="Number of players.")  # fmt: skip
@click.option("--api", help="Address of the api, http:// or https://.  [default: that of the "
              "running `scoreboard up`]")  # fmt: skip
@click.option("--seconds", type=Seconds(0, SECONDS_MAX), default=0.0,
              help="Stop after this time; 0 for never.")  # fmt: skip
@click.option("--seed", type=int, help="Seed of the random numbers, to repeat a simulation.")
@data_dir_option
def simulate(
    *, players: int, api: str | None, seconds: float, seed: int | None, data_dir: Path
) -> None:
    """Send updates as simulated players, until Ctrl-C.

    The command fails if it sent actions and none was counted.
    """
    if api is None:
        api = load_running_system(data_dir, "--api").api
    elif not _is_http_url(api):
        raise click.BadParameter("must be an http:// or https:// address", param_hint="'--api'")
    issuer, audience = load_issuer(data_dir), load_audience(data_dir)
    simulation = Simulation(api.rstrip("/"), issuer, audience, players=players, seed=seed)

    async def serve(stop: StopEvent) -> None:
        if seconds:
            asyncio.get_running_loop().call_later(seconds, stop.set)
        await simulation.run(stop)

    asyncio.run(supervise(serve, grace_s=TIMEOUT_S + 1))
    counts = simulation.counts
    print_message(
        f"{players} players: {counts.counted} actions counted, {counts.replayed} replayed, "
        f"{counts.refused} refused, {counts.retries} retries"
    )
    if counts.counted or counts.replayed:
        return
    if counts.refused:
        raise OperatorMistake(f"{api} counted no action: {counts.reason}")
    if counts.retries:
        raise Unavailable(f"{api} counted no action: {counts.reason}")


def _is_http_url(url: str) -> bool:
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    is_port = parts.port is None or 1 <= parts.port <= PORT_MAX
    return parts.scheme in {"http", "https"} and bool(parts.host) and is_port


def _is_replay(response: httpx.Response) -> bool | None:
    """Return whether the action had counted before; None if this is not a response of the api."""
    try:
        outcome: Any = response.json()
        return bool(outcome["replayed"])
    except (ValueError, KeyError, TypeError):
        return None


def _reason_of(response: httpx.Response) -> str:
    """Return the status and the detail of a response that is not a success."""
    try:
        problem: Any = response.json()
        words = str(problem["detail"])
    except (ValueError, KeyError, TypeError):
        words = response.reason_phrase
    return f"{response.status_code} {words}"


def _retry_after_s(response: httpx.Response, default_s: float) -> float:
    try:
        return min(float(response.headers["Retry-After"]), RETRY_AFTER_MAX_S)
    except (KeyError, ValueError):
        return default_s


def _name(number: int) -> str:
    round_, index = divmod(number, len(NAMES))
    return f"{NAMES[index]}-{round_ + 1}" if round_ else NAMES[index]
