"""The faults of drills and of the runbook's tests.

Each breaks a running system as an accident would, from another process, and returns when the
effect can be seen.
"""

import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import httpx
from psycopg import sql

from cli.embedded import binaries
from scoreboard.health.checks import BEHIND_S
from scoreboard.model import Partition
from scoreboard.store.keys import GROUP, PartitionKeys
from tests.drills.place import VISITOR, Place
from tests.support.eventually import eventually
from tests.support.repository import ROOT

KEYS = PartitionKeys(Partition("main"))
LOCK_S = 900
"""How long a forgotten transaction stays open; a drill ends earlier."""


@dataclass(frozen=True)
class Fault:
    """A fault, its alert, and what happened; a drill draws from those with ``is_drawn``."""

    name: str
    alert: str
    story: str
    inject: Callable[[Place], None]
    is_drawn: bool
    is_alerting: Callable[[Place], bool] | None = None
    """Whether the threshold of the alert is reached; None: it is when ``inject`` returns."""


FAULTS: dict[str, Fault] = {}


def fault(
    alert: str, *, is_drawn: bool = True, is_alerting: Callable[[Place], bool] | None = None
) -> Callable[[Callable[[Place], None]], Callable[[Place], None]]:
    """Register a function under its name; its docstring says what happened."""

    def register(inject: Callable[[Place], None]) -> Callable[[Place], None]:
        name = inject.__name__.replace("_", "-")
        assert inject.__doc__ is not None
        FAULTS[name] = Fault(name, alert, inject.__doc__, inject, is_drawn, is_alerting)
        return inject

    return register


def is_backlog_old(place: Place) -> bool:
    """Return whether the oldest action waits for longer than the alert allows."""
    with place.redis() as client:
        oldest = client.xrange(KEYS.events, count=1)
        seconds, _ = client.time()
    return bool(oldest) and seconds - int(oldest[0][0].partition("-")[0]) / 1000 > BEHIND_S


def is_drift_counted(place: Place) -> bool:
    """Return whether the flusher has found the users that differ."""
    try:
        text = httpx.get(f"{place.metrics['flusher']}/metrics", timeout=3, trust_env=False).text
    except httpx.HTTPError:
        return False
    return re.search(r"^scoreboard_drift_users\{.*\} [1-9]", text, re.MULTILINE) is not None


@fault("FlusherDown")
def flusher_login_refused(place: Place) -> None:
    """Somebody changed the flusher's password in PostgreSQL, and the flusher was killed."""
    with place.sql() as database:
        database.execute(
            sql.SQL("ALTER ROLE scoreboard_flusher_a PASSWORD {}").format(
                sql.Literal(secrets.token_urlsafe(12))
            )
        )
    _kill("flusher", place)
    _wait_logged("flusher", "password authentication failed", place)


@fault("PartitionClosed")
def redis_emptied(place: Place) -> None:
    """Redis was emptied with FLUSHALL."""
    with place.redis() as client:
        client.flushall()
    _wait_unready("api", place)


@fault("PartitionClosed")
def reseed_interrupted(place: Place) -> None:
    """A reseed was killed, so the board is still fenced."""
    with place.redis() as client:
        client.hset(KEYS.meta, mapping={"state": "fenced", "fence": f"cli:{secrets.token_hex(8)}"})


@fault("DeadLetters")
def stream_poisoned(place: Place) -> None:
    """A script of another team wrote an unreadable entry to the stream."""
    with place.redis() as client:
        client.xadd(KEYS.events, {"player": "ada", "points": "a lot"})
    with place.sql() as database:
        eventually(
            lambda: database.execute(
                "SELECT 1 FROM dead_events WHERE resolved_at IS NULL"
            ).fetchone(),
            within_s=20,
        )


@fault("ScoresDrifted", is_alerting=is_drift_counted)
def score_drifted(place: Place) -> None:
    """Somebody changed a score in Redis by hand."""
    with place.redis() as client:
        # A reseed gives new slots within a score, so a whole number of points is added.
        client.zincrby(KEYS.board, 50 * 2**21, VISITOR)


@fault("RedisNotDurable")
def redis_not_durable(place: Place) -> None:
    """Somebody set appendfsync to everysec in Redis's settings, and restarted it."""
    _set_valkey(place, "appendfsync", "everysec")
    _wait_until(lambda: "durability" in _health("api", place) and not _is_ready("api", place))


@fault("SecretInvalid")
def secret_of_the_wrong_shape(place: Place) -> None:
    """A deployment wrote the flusher's login as plain text, and the flusher was restarted."""
    path = place.secret("flusher", "database")
    path.write_text("username=scoreboard_flusher_a password=…\n")
    _kill("flusher", place)
    _wait_logged("flusher", "must be a JSON object", place)


@fault("BoardStale")
def streamer_login_refused(place: Place) -> None:
    """Somebody changed the streamer's password in Redis."""
    with place.redis() as client:
        client.execute_command("ACL", "SETUSER", "streamer", "resetpass", ">other")
        client.execute_command("ACL", "SAVE")
        client.execute_command("CLIENT", "KILL", "USER", "streamer")
    _wait_unready("streamer", place)


@fault("FlusherStuck")
def flusher_frozen(place: Place) -> None:
    """The flusher's process was stopped by a signal (SIGSTOP) and does nothing."""
    pid = place.pid("flusher")
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)


@fault("StreamBacklogOld", is_alerting=is_backlog_old)
def ledger_locked(place: Place) -> None:
    """Somebody's transaction holds a lock on the ledger, and was forgotten."""
    _hold_lock(place, "score_events")


@fault("PostgresDown")
def postgres_stopped(place: Place) -> None:
    """PostgreSQL was stopped and not started again."""
    _stop("postgres", place)


@fault("RedisDown")
def redis_stopped(place: Place) -> None:
    """Redis was stopped and not started again."""
    _stop("valkey", place)
    _wait_unready("api", place)


@fault("RedisMemoryHigh")
def redis_full(place: Place) -> None:
    """Redis's memory limit was set too low, so it refuses writes."""
    _set_valkey(place, "maxmemory", "1mb")


@fault("RedisEvictsKeys")
def redis_evicts(place: Place) -> None:
    """Somebody set Redis's maxmemory-policy to allkeys-lru, and a board was evicted."""
    _set_valkey(place, "maxmemory-policy", "allkeys-lru")
    with place.redis() as client:
        client.unlink(KEYS.board)


@fault("StreamFaults")
def stream_trimmed(place: Place) -> None:
    """Somebody trimmed the stream while the flusher was behind, so accepted actions are missing."""
    pid = place.pid("flusher")
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        with place.redis() as client:
            before = client.hget(KEYS.meta, "seq")
            eventually(
                lambda: int(client.hget(KEYS.meta, "seq") or 0) > int(before or 0) + 2, within_s=20
            )
            client.xtrim(KEYS.events, maxlen=0, approximate=False)
    finally:
        os.kill(pid, signal.SIGCONT)
    with place.redis() as client:
        eventually(lambda: client.hget(KEYS.meta, "state") == "fenced", within_s=30)


@fault("SeasonOverdue", is_drawn=False)
def season_not_turned(place: Place) -> None:
    """Somebody took a right from the flusher's login in Redis, and the season of a board ended."""
    _run(place, "board", "create", "league", "--season", "daily")
    with place.redis() as client:
        client.execute_command("ACL", "SETUSER", "flusher", "-xadd")
        meta = PartitionKeys(Partition("league")).meta
        name, start, _ = str(client.hget(meta, "season")).split(":")
        client.hset(meta, "season", f"{name}:{start}:{int(start) + 1}")
    _wait_logged("flusher", "season_not_turned", place)


@fault("HeldActions", is_drawn=False)
def held_for_days(place: Place) -> None:
    """An action exceeded a limit two days ago, and nobody has decided on it."""
    with place.sql() as database:
        database.execute(
            "INSERT INTO held_actions (board, user_id, action_id, part, epoch, seq, delta, score,"
            " limit_kind, occurred_at) SELECT 'main', id, 'win:held', 0, 0, 0, 5000, 0, 'action',"
            " now() - INTERVAL '2 days' FROM users WHERE external_id = %s",
            [VISITOR],
        )


@fault("ApiDown", is_drawn=False)
def api_stopped(place: Place) -> None:
    """The api was stopped and not started again."""
    _stop("api", place)


@fault("StreamerDown", is_drawn=False)
def streamer_stopped(place: Place) -> None:
    """The streamer was stopped and not started again."""
    _stop("streamer", place)


@fault("PoolExhausted", is_drawn=False)
def users_locked(place: Place) -> None:
    """Somebody's transaction holds a lock on the table of users, and was forgotten."""
    _hold_lock(place, "users")


@fault("SecretStale", is_drawn=False)
def secret_missing(place: Place) -> None:
    """The file of the api's login was removed."""
    place.secret("api", "database").unlink()


@fault("RedisDown", is_drawn=False)
def disk_full(place: Place) -> None:
    """The disk of Redis is full."""
    place.disk_is_full.touch()
    _wait_until(lambda: place.pid("valkey") is None, within_s=30)


@fault("StreamFaults", is_drawn=False)
def group_destroyed(place: Place) -> None:
    """Somebody removed the flusher's consumer group."""
    with place.redis() as client:
        client.xgroup_destroy(KEYS.events, GROUP)


def _run(place: Place, *command: str) -> None:
    """Run a command of the operator."""
    subprocess.run(
        [sys.executable, "-m", "cli", *command],
        env=dict(place.programs) | dict(place.operator),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=30,
    )


def _stop(part: str, place: Place) -> None:
    place.marker(part).touch()
    _wait_until(lambda: place.pid(part) is None)


def _kill(part: str, place: Place) -> None:
    pid = place.pid(part)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    _wait_until(lambda: place.pid(part) != pid)


def _set_valkey(place: Place, name: str, value: str) -> None:
    """Change a line of the settings' file, and restart Valkey."""
    lines = [
        f"{name} {value}" if line.split(" ")[0] == name else line
        for line in place.valkey_settings.read_text().splitlines()
    ]
    place.valkey_settings.write_text("\n".join(lines) + "\n")
    _stop("valkey", place)
    place.marker("valkey").unlink()
    _wait_until(lambda: place.pid("valkey") is not None)


def _hold_lock(place: Place, table: str) -> None:
    script = f"BEGIN; LOCK TABLE {table}; SELECT pg_sleep({LOCK_S});"
    address, password = place.owner
    # The session outlives this process, and ends with the server.
    subprocess.run(
        [
            *("setsid", "--fork", binaries.find_postgres().path("psql")),
            *("-X", "-q", address, "-c", script),
        ],
        env=dict(place.programs) | {"PGAPPNAME": "monthly-report", "PGPASSWORD": password},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
        timeout=10,
    )
    with place.sql() as database:
        waiting = "SELECT 1 FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0"
        eventually(lambda: database.execute(waiting).fetchone(), within_s=30)


def _health(part: str, place: Place) -> str:
    try:
        return httpx.get(f"{place.health[part]}/health/ready", timeout=3, trust_env=False).text
    except httpx.HTTPError:
        return ""


def _is_ready(part: str, place: Place) -> bool:
    try:
        response = httpx.get(f"{place.health[part]}/health/ready", timeout=3, trust_env=False)
    except httpx.HTTPError:
        return False
    return response.status_code == 200


def _wait_logged(part: str, text: str, place: Place) -> None:
    logs = [place.folder / "system" / f"{part}.log{end}" for end in ("", ".1")]
    _wait_until(lambda: any(log.exists() and text in log.read_text() for log in logs))


def _wait_unready(part: str, place: Place) -> None:
    _wait_until(lambda: not _is_ready(part, place))


def _wait_until(check: Callable[[], bool], within_s: float = 20) -> None:
    eventually(check, within_s=within_s)
