"""Whether the system of a drill is well again."""

import asyncio
from contextlib import suppress

import httpx
import psycopg
import redis

from cli.commands.verify import read_verdict
from scoreboard.errors import ScoreboardError
from scoreboard.recovery.reseed import report_nothing
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.security.secret_backends import parse
from tests.drills.place import PARTS, SERVICES, Place
from tests.support.servers.rights import as_user

LOGINS = (
    *((name, "redis") for name in (*SERVICES, "operator", "rotator")),
    *((name, "database") for name in ("api", "streamer", "flusher", "operator", "rotator")),
)

TRANSACTION_S = 2.0
"""The services' transactions are shorter."""

MEMORY_SHARE = 0.8


def find_problems(place: Place) -> list[str]:
    """Return what is not as it should be; nothing if the system is well.

    The comparison of both stores is the last check, because it takes a second.
    """
    found = [f"{part} does not run" for part in PARTS if place.pid(part) is None]
    found += [problem for part in SERVICES if (problem := _unready(part, place))]
    if not found:
        found += [problem for login in LOGINS if (problem := _refused(*login, place))]
        found += _dead_letters(place)
        found += _open_transactions(place)
        found += _memory(place)
    return found or _differences(place)


def _unready(part: str, place: Place) -> str:
    try:
        answer = httpx.get(f"{place.health[part]}/health/ready", timeout=3, trust_env=False)
    except httpx.HTTPError as error:
        return f"{part} does not answer ({type(error).__name__})"
    return "" if answer.status_code == 200 else f"{part} is not ready: {answer.text}"


def _refused(service: str, kind: str, place: Place) -> str:
    path = place.secret(service, kind)
    try:
        login = parse(str(path), path.read_bytes(), "")
    except (OSError, ScoreboardError) as error:
        return f"the secret {path}: {error}"
    url = place.redis_url if kind == "redis" else place.database_url
    address = as_user(url, login.username, login.password.reveal())
    with suppress(psycopg.OperationalError, redis.AuthenticationError):
        if kind == "redis":
            with redis.Redis.from_url(address) as client:
                client.ping()
        else:
            psycopg.connect(address, connect_timeout=5).close()
        return ""
    return f"the login of {path} is refused"


def _dead_letters(place: Place) -> list[str]:
    with place.sql() as database:
        query = "SELECT id FROM dead_events WHERE resolved_at IS NULL"
        return [f"dead letter {row[0]}" for row in database.execute(query)]


def _open_transactions(place: Place) -> list[str]:
    with place.sql() as database:
        query = (
            "SELECT pid, application_name FROM pg_stat_activity"
            " WHERE state <> 'idle' AND xact_start < now() - make_interval(secs => %s)"
        )
        rows = database.execute(query, (TRANSACTION_S,)).fetchall()
    return [f"session {pid} ({name}) has an open transaction" for pid, name in rows]


def _memory(place: Place) -> list[str]:
    with place.redis() as client:
        facts = client.info("memory")
    is_full = facts["used_memory"] > MEMORY_SHARE * facts["maxmemory"]
    return ["Redis has little memory left"] if is_full else []


def _differences(place: Place) -> list[str]:
    settings = Settings(redis_url=Secret(place.redis_url), database_url=Secret(place.database_url))
    try:
        verdict = asyncio.run(read_verdict(settings, "main", None, report_nothing))
    except ScoreboardError as error:
        return [f"verify: {error}"]
    return [f"verify: {one}" for one in (*verdict.drifted, *verdict.findings)]
