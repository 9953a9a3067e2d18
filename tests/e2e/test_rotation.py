"""The secrets of the development issuer rotate while players play."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from cli.issuer.config import SECRET_FILE
from cli.issuer.oauth import GAME_SERVER
from cli.target import ISSUER_DIR
from scoreboard.security.local_issuer import LocalIssuer
from scoreboard.security.tokens import READ, UPDATE
from tests.e2e.test_up import StartUp
from tests.e2e.test_up import start_up as start_up  # noqa: PLC0414 (a fixture)
from tests.support.servers.system import run_command

pytestmark = pytest.mark.timeout(240)
ROTATIONS = 3
PACE_S = 0.02


class Players:
    """A game server that requests tokens with its secret, and a player with tokens of its own."""

    def __init__(self, running: dict[str, str], folder: Path) -> None:
        self.api = running["api"]
        self.token_url = f"{running['issuer']}/token"
        self.folder = folder / ISSUER_DIR
        self.issuer = LocalIssuer.load(self.folder)
        self.results: Counter[str] = Counter()
        self.client = httpx.Client(trust_env=False, timeout=30)

    def client_secret(self) -> str:
        return (self.folder / SECRET_FILE).read_text()

    def grant(self, secret: str) -> httpx.Response:
        return self.client.post(
            self.token_url,
            data={"grant_type": GAME_SERVER.grant},
            auth=(GAME_SERVER.id, secret),
        )

    def update(self, token: str, user: str, number: int) -> int:
        answer = self.client.post(
            f"{self.api}/api/scores/update",
            json={"userId": user, "actionId": f"win:{user}-{number}"},
            headers={"Authorization": f"Bearer {token}"},
        )
        return answer.status_code

    @contextmanager
    def playing(self) -> Iterator[None]:
        """Play in a thread; count every result."""
        is_over = threading.Event()

        def play() -> None:
            number = 0
            while not is_over.wait(PACE_S):
                number += 1
                granted = self.grant(self.client_secret())
                self.results[f"grant {granted.status_code}"] += 1
                if granted.status_code == 200:
                    status = self.update(granted.json()["access_token"], "alice", number)
                    self.results[f"game server {status}"] += 1
                status = self.update(self.issuer.issue("bob", (UPDATE, READ)), "bob", number)
                self.results[f"player {status}"] += 1

        thread = threading.Thread(target=play)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join(60)


def test_key_and_client_secret_rotate_while_players_play(
    start_up: StartUp, request: pytest.FixtureRequest
) -> None:
    up = start_up("--issuer-port", "0", SCOREBOARD_UPDATES_PER_MINUTE="1000000")
    running = up.wait_until_running()
    players = Players(running, up.folder)
    request.addfinalizer(players.client.close)
    kids, secrets, tokens = [players.issuer.keys.current.kid], [players.client_secret()], []

    with players.playing():
        for _ in range(ROTATIONS):
            tokens.append(players.issuer.issue("carol", (UPDATE, READ)))
            done = run_command(
                *("secrets", "rotate", "oauth", "--grace", "0", "--no-wait", "--json"),
                *("--data-dir", str(up.folder)),
            )
            assert done.returncode == 0, done.stderr
            assert len(json.loads(done.stdout)) == 2
            assert players.update(tokens[-1], "carol", len(tokens)) == 200
            assert players.grant(secrets[-1]).status_code == 200
            kids.append(players.issuer.keys.current.kid)
            secrets.append(players.client_secret())

    print(dict(players.results))  # noqa: T201 (the counts)
    assert len(set(kids)) == len(set(secrets)) == ROTATIONS + 1
    assert set(players.results) == {"grant 200", "game server 200", "player 200"}
    assert min(players.results.values()) > 10

    retired = run_command(
        "secrets", "retire", "oauth", "--grace", "0", "--data-dir", str(up.folder)
    )
    assert retired.returncode == 0, retired.stderr
    assert players.grant(secrets[-2]).status_code == 401
    assert players.grant(secrets[-1]).status_code == 200
    for secret in secrets:
        assert secret not in done.stdout + done.stderr + retired.stdout + retired.stderr
        assert secret not in "".join(
            path.read_text() for path in (up.folder / "logs").rglob("*.log")
        )
