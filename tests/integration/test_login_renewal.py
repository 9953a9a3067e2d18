"""All connections of all services are renewed after a change of their secrets, under load."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scoreboard.security.credentials import INVALIDATE_EVERY_S
from tests.support.clients.load import POINTS, Load
from tests.support.eventually import eventually
from tests.support.fakes.aws import SecretsManager
from tests.support.figures import show_figures
from tests.support.servers.rotated import USERS, Rotated

pytestmark = pytest.mark.slow

REFRESH_S = 1.0
PICKUP_S = 1.1 * REFRESH_S + 6.0
"""Time to renew every connection: a refresh, the checks of each second, and a busy machine."""

REDIS_PARTS = {
    *("scoreboard-api", "scoreboard-api-limit", "scoreboard-api-dispatcher"),
    "scoreboard-api-reads",
    *("scoreboard-api-catalogue", "scoreboard-api-commits"),
    *("scoreboard-api-stream-changes", "scoreboard-api-stream-reads"),
    *("scoreboard-streamer-changes", "scoreboard-streamer-reads"),
    *("scoreboard-flusher", "scoreboard-flusher-reader", "scoreboard-flusher-verify"),
}
DATABASE_PARTS = {"scoreboard-api", "scoreboard-flusher", "scoreboard-flusher-verify"}


@pytest.fixture
def rotated(tmp_path: Path, secrets_manager: SecretsManager) -> Iterator[Rotated]:
    made = Rotated(
        tmp_path,
        aws=secrets_manager.client,
        secrets_refresh_s=REFRESH_S,
        acknowledge="committed",
        trusted_updates_per_minute=1_000_000,
    )
    try:
        made.start()
        yield made
    finally:
        made.close()


def pickup_times(rotated: Rotated, before: dict[str, str], old_login: str) -> dict[str, float]:
    """Wait until no connection and session of before is left; return the time of each part."""
    began_s = time.monotonic()
    times: dict[str, float] = {}

    def are_renewed() -> bool:
        left = {before[one] for one in rotated.redis_connections() if one in before}
        sessions = rotated.database_sessions().items()
        left |= {
            f"{name} (database)"
            for name, logins in sessions
            if any(login.endswith(f"_{old_login}") for login in logins)
        }
        parts = set(before.values()) | {f"{name} (database)" for name, _ in sessions}
        for part in parts - left - set(times):
            times[part] = round(time.monotonic() - began_s, 2)
        assert not left, left
        return True

    eventually(are_renewed, within_s=PICKUP_S)
    return times


def check_scores(rotated: Rotated, load: Load) -> None:
    """Check that PostgreSQL holds each acknowledged action once."""
    wanted = {user: count * POINTS for user, count in load.updates.items()}

    def stored() -> dict[str, int]:
        rows = rotated.database.execute(
            "SELECT external_id, score FROM scores JOIN users ON user_id = id"
        )
        return {str(name): int(score) for name, score in rows}

    eventually(lambda: stored() == wanted)


def test_every_connection_is_renewed_without_a_failed_request(rotated: Rotated) -> None:
    old, old_password = "a", "first"
    with Load(rotated.system).running() as load:
        eventually(lambda: set(rotated.redis_connections().values()) >= REDIS_PARTS)
        for new, password in (("b", "second"), ("a", "third"), ("b", "fourth")):
            before, count = rotated.redis_connections(), load.updates.total()
            eventually(lambda: set(rotated.database_sessions()) >= DATABASE_PARTS)
            rotated.rotate(password, new)
            times = pickup_times(rotated, before, old)
            show_figures(f"renewed after {dict(sorted(times.items(), key=lambda one: one[1]))}")
            for name in USERS:
                rotated.redis.execute_command("ACL", "SETUSER", name, f"<{old_password}")
            old, old_password = new, password
            eventually(lambda count=count: load.updates.total() > count + 50)
    show_figures(
        f"{load.updates.total()} updates, {load.reads} reads, {load.frames} frames, "
        f"{load.events} events; slowest update {load.slowest_s:.3f} s; "
        f"failed: {dict(load.failures) or 0}"
    )

    assert not load.failures
    check_scores(rotated, load)


def test_a_login_that_is_cut_off_at_once_loses_and_doubles_nothing(rotated: Rotated) -> None:
    old = "a"
    with Load(rotated.system).running() as load:
        eventually(lambda: set(rotated.redis_connections().values()) >= REDIS_PARTS)
        for new, password, first in (("b", "second", True), ("a", "third", False)):
            count, failed = load.updates.total(), load.failures.copy()
            began_s = time.monotonic()
            rotated.replace_and_kill(password, new, old, secrets_first=first)
            eventually(lambda count=count: load.updates.total() > count + 50)
            took_s = time.monotonic() - began_s
            # A secret is read again after a refusal at most each five seconds.
            eventually(
                lambda began_s=began_s: time.monotonic() > began_s + 2 * INVALIDATE_EVERY_S,
            )
            show_figures(
                f"secrets written {'before' if first else 'after'}: 50 updates in {took_s:.2f} s; "
                f"failed and repeated: {dict(load.failures - failed) or 0}"
            )
            old = new
    show_figures(f"{load.updates.total()} updates, slowest {load.slowest_s:.3f} s")

    kinds = {kind.partition(" ")[0] + " " + kind.split()[1] for kind in load.failures}
    assert kinds <= {"update 503", "read 503", "viewer stale", "event stream"}
    assert "event stream ended" not in load.failures
    check_scores(rotated, load)
