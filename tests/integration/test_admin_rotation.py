"""The operator's secrets are rotated while an administrator acts through the api that has them."""

import itertools
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.embedded.ports import find_free_port
from cli.running.service import wait_until_ready
from scoreboard.security.tokens import ADMIN
from tests.integration.test_rotation_under_load import KINDS, rotate_all
from tests.support.eventually import eventually
from tests.support.fakes.aws import SecretsManager
from tests.support.servers.forked_service import ForkedService
from tests.support.servers.rotated import Rotated

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

ROTATIONS = 2


@pytest.fixture(params=["aws", "file"])
def rotated(
    request: pytest.FixtureRequest, tmp_path: Path, secrets_manager: SecretsManager
) -> Iterator[Rotated]:
    aws = secrets_manager.client if request.param == "aws" else None
    made = Rotated(tmp_path, aws=aws, has_acl_file=True, secrets_refresh_s=1.0)
    try:
        made.start()
        yield made
    finally:
        made.close()


def start_administration(rotated: Rotated) -> str:
    """Start an api for administrators; return its address."""
    system, port = rotated.system, find_free_port()
    address = f"http://127.0.0.1:{port}"
    environment = system.variables["api"] | {
        "SCOREBOARD_API_PORT": str(port),
        "SCOREBOARD_ADMIN_API": "true",
        "SCOREBOARD_ADMIN_REDIS_SECRET": rotated.secrets["operator", "redis"],
        "SCOREBOARD_ADMIN_DATABASE_SECRET": rotated.secrets["operator", "database"],
    }
    service = ForkedService(
        "admin",
        ["-m", "api"],
        environment,
        system.folder / "admin.log",
        ready_url=f"{address}/health/ready",
    )
    system.on_stop(service.stop)
    service.start()
    wait_until_ready([service], lambda: None)
    return address


class Corrections:
    """Corrections of a score by a point, one after another, and what was answered."""

    def __init__(self, rotated: Rotated, address: str) -> None:
        self.done = 0
        self.failures: list[str] = []
        self._stop = threading.Event()
        token = rotated.system.token("carla", ADMIN)
        self._client = httpx.Client(
            base_url=address,
            headers={"Authorization": f"Bearer {token}"},
            trust_env=False,
            timeout=30,
        )
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def _send(self) -> None:
        body: dict[str, Any] = {"kind": "correct", "board": "main", "userId": "alice", "delta": 1}
        for number in itertools.count(1):
            if self._stop.is_set():
                return
            sent = body | {"id": f"{number:016x}", "reason": "test"}
            answer = self._client.post("/api/admin/acts", json=sent)
            if answer.status_code == 200 and answer.json()["committed"]:
                self.done += 1
            else:
                self.failures.append(answer.text)

    def stop(self) -> int:
        """Stop sending; return the score."""
        self._stop.set()
        self._thread.join()
        with closing(self._client) as client:
            user = client.get("/api/admin/users/alice").json()
        return int(user["boards"][0]["score"])


def test_no_act_fails_while_the_operators_secrets_are_rotated(rotated: Rotated) -> None:
    corrections = Corrections(rotated, start_administration(rotated))
    try:
        for _ in range(ROTATIONS):
            before = corrections.done
            eventually(lambda before=before: corrections.done > before + 3)
            printed = rotate_all(rotated)
            for text, secrets in zip(printed, KINDS.values(), strict=True):
                assert text.count("\tretired\n") == secrets, text
        before = corrections.done
        eventually(lambda: corrections.done > before + 3)
    finally:
        score = corrections.stop()

    assert corrections.failures == []
    assert score == corrections.done
