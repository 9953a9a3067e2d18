"""Every secret of PostgreSQL and Redis is rotated five times while the system is in use."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.integration.test_login_renewal import check_scores
from tests.support.clients.forked import run_forked
from tests.support.clients.load import Load
from tests.support.eventually import eventually
from tests.support.fakes.aws import SecretsManager
from tests.support.figures import show_figures
from tests.support.servers.rotated import ROTATOR, Rotated

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROTATIONS = 5
GRACE_S = "2.5"
"""Within it, every process reads the secret twice."""

KINDS = {"db": 5, "redis": 5}
"""The kinds, and how many secrets each has."""


@pytest.fixture(params=["aws", "file"])
def rotated(
    request: pytest.FixtureRequest, tmp_path: Path, secrets_manager: SecretsManager
) -> Iterator[Rotated]:
    made = Rotated(
        tmp_path,
        aws=secrets_manager.client if request.param == "aws" else None,
        has_acl_file=True,
        secrets_refresh_s=1.0,
        trusted_updates_per_minute=1_000_000,
    )
    try:
        made.start()
        yield made
    finally:
        made.close()


def without_login(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def rotate_all(rotated: Rotated) -> list[str]:
    """Run the command for both kinds at once; return what they printed."""
    environment = {
        name: text for name, text in os.environ.items() if not name.startswith("SCOREBOARD_")
    } | {
        **rotated.secret_variables(ROTATOR),
        "REDIS_URL": without_login(rotated.system.valkey.url),
        "DATABASE_URL": without_login(rotated.system.postgres.url),
        "SCOREBOARD_SECRETS_REFRESH_S": "1",
    }
    with ThreadPoolExecutor(len(KINDS)) as executor:
        ended = list(
            executor.map(
                lambda kind: run_forked(
                    "cli", ["secrets", "rotate", kind, "--grace", GRACE_S], environment
                ),
                KINDS,
            )
        )
    for done in ended:
        assert done.returncode == 0, done.stdout + done.stderr
    return [done.stdout for done in ended]


def test_no_request_fails_while_every_secret_is_rotated(rotated: Rotated) -> None:
    began_s = time.monotonic()
    with Load(rotated.system).running() as load:
        eventually(lambda: load.updates.total() > 50)
        for _ in range(ROTATIONS):
            count = load.updates.total()
            printed = rotate_all(rotated)
            for text, secrets in zip(printed, KINDS.values(), strict=True):
                assert text.count("\tretired\n") == secrets, text
            eventually(lambda count=count: load.updates.total() > count + 50)
    show_figures(
        f"{ROTATIONS} rotations of {sum(KINDS.values())} secrets in "
        f"{time.monotonic() - began_s:.0f} s: {load.updates.total()} updates, {load.reads} reads, "
        f"{load.frames} frames, {load.events} events; slowest update {load.slowest_s:.3f} s; "
        f"failed: {dict(load.failures) or 0}"
    )

    assert not load.failures
    check_scores(rotated, load)
