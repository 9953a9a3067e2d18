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
from typing import Final

import click
import httpx
import msgspec
from msgspec import Struct

from cli.render import say
from cli.target import data_dir_option, issuer_of
from scoreboard.auth import UPDATE_ANY, LocalIssuer
from scoreboard.lifecycle import Stop, backoff_s, run
from scoreboard.telemetry import setup_logging

NAMES: Final = tuple(
    """
    ada alan anita annie barbara claude donald edsger evelyn frances grace hedy jean joan john
    karen katherine ken leslie lynn margaret mary niklaus radia ruth shafi sophie stephen sue tim
    """.split()  # noqa: SIM905 (read as a list of names)
)
POINTS: Final = {"kill": 5, "win": 25, "quest": 10, "bonus": 50}
KINDS: Final = ("kill", "kill", "kill", "quest", "quest", "win", "bonus")
MEAN_S: Final = 7.0
"""Mean time between two actions of a player; with LEAST_S some eight a minute."""
LEAST_S: Final = 1.5
REPEAT_SHARE: Final = 0.04
"""Share of actions sent twice, as over a bad network: the second must count nothing."""
TOKEN_S: Final = 3600
RENEW_S: Final = 600
TIMEOUT_S: Final = 5.0


class Tally(Struct):
    """What happened so far."""

    counted: int = 0
    replayed: int = 0
    refused: int = 0
    repeated: int = 0


class Players:
    """Players of one game server."""

    def __init__(self, api: str, issuer: LocalIssuer, *, players: int, seed: int | None) -> None:
        self.tally = Tally()
        self._address = f"{api}/api/scores/update"
        self._issuer = issuer
        self._names = [_name(number) for number in range(players)]
        self._random = random.Random(seed)  # noqa: S311 (a game)
        self._numbers = count(1)
        self._run = f"{time.time_ns():x}"
        self._token = ""
        self._expires_at_s = 0.0

    async def play(self, stop: Stop) -> None:
        """Play until ``stop``."""
        limits = httpx.Limits(max_connections=16)
        async with (
            httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits, trust_env=False) as client,
            asyncio.TaskGroup() as group,
        ):
            for name in self._names:
                group.create_task(self._play_one(client, name, stop))

    async def _play_one(self, client: httpx.AsyncClient, name: str, stop: Stop) -> None:
        # A skill of one's own makes leaders; the dice make them change.
        skill = self._random.uniform(0.7, 1.4)
        while not await stop.sleep(LEAST_S + self._random.expovariate(skill / (MEAN_S - LEAST_S))):
            kind = self._random.choice(KINDS)
            body = msgspec.json.encode(
                {
                    "userId": name,
                    "actionId": f"{kind}:{self._run}-{next(self._numbers)}",
                    "points": POINTS[kind],
                }
            )
            for _ in range(2 if self._random.random() < REPEAT_SHARE else 1):
                await self._send(client, body, stop)

    async def _send(self, client: httpx.AsyncClient, body: bytes, stop: Stop) -> None:
        """Send one action until its outcome is known, or until ``stop``."""
        attempt = 0
        while not stop.is_set:
            wait_s = backoff_s(attempt)
            try:
                answer = await client.post(self._address, content=body, headers=self._headers())
            except httpx.HTTPError:
                pass  # the outcome is unknown: the same action again
            else:
                if answer.status_code == 200:
                    if answer.json()["replayed"]:
                        self.tally.replayed += 1
                    else:
                        self.tally.counted += 1
                    return
                if answer.status_code not in {429, 503}:
                    self.tally.refused += 1
                    return
                wait_s = float(answer.headers.get("Retry-After", wait_s))
            self.tally.repeated += 1
            attempt += 1
            await stop.sleep(wait_s)

    def _headers(self) -> dict[str, str]:
        now_s = time.time()
        if now_s > self._expires_at_s - RENEW_S:
            self._token = self._issuer.issue("simulation", [UPDATE_ANY], TOKEN_S)
            self._expires_at_s = now_s + TOKEN_S
        return {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}


@click.command()
@click.option("--players", type=click.IntRange(1, 10_000), default=20, show_default=True,
              help="How many play.")  # fmt: skip
@click.option("--api", default="http://127.0.0.1:8000", show_default=True, help="The api.")
@click.option("--seconds", type=click.FloatRange(min=0), default=0.0,
              help="End after so long; 0: play on.")  # fmt: skip
@click.option("--seed", type=int, help="Play the same game again.")
@data_dir_option
def simulate(*, players: int, api: str, seconds: float, seed: int | None, data_dir: Path) -> int:
    """Let players play until Ctrl-C, or for a while."""
    setup_logging("simulation", level="warning", form="json", environment="development")
    game = Players(api.rstrip("/"), issuer_of(data_dir), players=players, seed=seed)

    async def serve(stop: Stop) -> None:
        if seconds:
            asyncio.get_running_loop().call_later(seconds, stop.set)
        await game.play(stop)

    code = run(serve, grace_s=TIMEOUT_S + 1)
    tally = game.tally
    say(
        f"{players} players: {tally.counted} actions counted, {tally.replayed} replayed, "
        f"{tally.refused} refused, {tally.repeated} tries repeated"
    )
    return code


def _name(number: int) -> str:
    round_, place = divmod(number, len(NAMES))
    return f"{NAMES[place]}-{round_ + 1}" if round_ else NAMES[place]
