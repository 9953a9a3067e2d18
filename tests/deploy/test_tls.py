"""The whole system with TLS to Redis and PostgreSQL, as docs/how-to/tls.md describes it."""

import json
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from websockets.sync.client import connect as connect_viewer

from tests.support.eventually import eventually
from tests.support.fakes.tls import Authority, Terminator, terminating
from tests.support.servers.system import System, run_command


@dataclass(frozen=True)
class Encrypted:
    """A running system; ``authority`` has signed the certificates of both servers."""

    system: System
    authority: Authority
    redis: Terminator
    postgres: Terminator

    def redis_url(self, port: int, query: str) -> str:
        return f"rediss://:{self.system.valkey.password}@127.0.0.1:{port}/0?{query}"

    def database_url(self, port: int, query: str) -> str:
        server = self.system.postgres
        user = f"{server.user}:{server.password}"
        return f"postgresql://{user}@127.0.0.1:{port}/{server.database}?{query}"


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority(folder, "authority")
    environment: dict[str, str] = {}
    system = System(
        folder / "system",
        environments=dict.fromkeys(("api", "streamer", "flusher"), environment),
    )
    with ExitStack() as stack:
        stack.callback(system.stop)
        system.valkey.start()
        system.postgres.start()
        context = authority.server("127.0.0.1")
        redis = stack.enter_context(terminating(system.valkey.port, context))
        postgres = stack.enter_context(terminating(system.postgres.port, context, is_postgres=True))
        made = Encrypted(system, authority, redis, postgres)
        environment |= {
            "REDIS_URL": made.redis_url(redis.port, f"ssl_ca_certs={authority.path}"),
            "DATABASE_URL": made.database_url(
                postgres.port, f"sslmode=verify-full&sslrootcert={authority.path}"
            ),
        }
        system.start()
        yield made
        system.stop()  # before the terminators


def test_an_update_reaches_viewers_and_the_ledger_over_tls(encrypted: Encrypted) -> None:
    system = encrypted.system
    headers = {"Authorization": f"Bearer {system.token('alice')}"}
    request = urllib.request.Request(
        f"{system.api}/api/scores/update",
        json.dumps({"userId": "alice", "actionId": "win:1"}).encode(),
        {"Content-Type": "application/json", **headers},
    )
    with connect_viewer(system.ws, additional_headers=headers) as viewer:
        with urllib.request.urlopen(request, timeout=30) as response:
            assert json.load(response)["newScore"] == 10
        eventually(lambda: "alice" in str(viewer.recv(timeout=30)), within_s=30)

    def is_committed() -> bool:
        with psycopg.connect(system.postgres.url) as connection:
            row = connection.execute("SELECT count(*) FROM score_events").fetchone()
            return row == (1,)

    eventually(is_committed)
    # The services have no other addresses.
    assert encrypted.redis.seen >= 3
    assert encrypted.postgres.seen >= 2


@pytest.mark.parametrize("command", [("status",), ("verify", "--full"), ("db", "status")])
def test_commands_work_over_tls(encrypted: Encrypted, command: tuple[str, ...]) -> None:
    variables = encrypted.system.variables["flusher"]
    done = run_command(
        *command,
        **{name: text for name, text in variables.items() if "SCOREBOARD_" in name},
        REDIS_URL=variables["REDIS_URL"],
        DATABASE_URL=variables["DATABASE_URL"],
        SCOREBOARD_SERVICES=f"api={encrypted.system.api}",
    )
    assert "certificate" not in done.stdout + done.stderr
    if command != ("status",):  # which also asks for services that have no metrics here
        assert done.returncode == 0, (done.stdout, done.stderr)


def checked(redis_url: str, database_url: str) -> dict[str, str]:
    """Return the states that `scoreboard config check` prints for the servers."""
    done = run_command("config", "check", REDIS_URL=redis_url, DATABASE_URL=database_url)
    lines = dict(line.split("\t", 1) for line in done.stdout.splitlines() if "\t" in line)
    return {name.strip(): state.strip() for name, state in lines.items()}


def test_a_certificate_of_an_unknown_authority_is_refused(
    encrypted: Encrypted, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other")
    found = checked(
        encrypted.redis_url(encrypted.redis.port, f"ssl_ca_certs={other.path}"),
        encrypted.database_url(
            encrypted.postgres.port, f"sslmode=verify-full&sslrootcert={other.path}"
        ),
    )
    assert "certificate verify failed" in found["redis"], found
    assert "certificate verify failed" in found["postgresql"], found
    system_authorities = checked(
        encrypted.redis_url(encrypted.redis.port, ""),
        encrypted.database_url(encrypted.postgres.port, "sslmode=verify-full&sslrootcert=system"),
    )
    assert "certificate verify failed" in system_authorities["redis"], system_authorities
    assert "certificate verify failed" in system_authorities["postgresql"], system_authorities
    for state in (*found.values(), *system_authorities.values()):
        assert encrypted.system.valkey.password not in state
        assert encrypted.system.postgres.password not in state


def test_a_certificate_for_another_host_is_refused(encrypted: Encrypted) -> None:
    authority, system = encrypted.authority, encrypted.system
    context = authority.server("192.0.2.1")
    with (
        terminating(system.valkey.port, context) as redis,
        terminating(system.postgres.port, context, is_postgres=True) as postgres,
    ):
        found = checked(
            encrypted.redis_url(redis.port, f"ssl_ca_certs={authority.path}"),
            encrypted.database_url(
                postgres.port, f"sslmode=verify-full&sslrootcert={authority.path}"
            ),
        )
    assert "127.0.0.1" in found["redis"], found
    assert "does not match" in found["postgresql"], found
