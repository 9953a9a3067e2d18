"""An unreachable database is reported with the cause in one line, without a password."""

import socket
from collections.abc import Iterator
from urllib.parse import quote, urlsplit

import pytest

from scoreboard.errors import DatabaseUnavailable
from scoreboard.ledger import migrations
from scoreboard.ledger.pool import connect
from scoreboard.runtime.settings import Secret, Settings
from tests.support.clients.commands import Run

PASSWORD = "s3cr3t-word"


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Return a port that accepts connections and does not answer."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


async def driver_error(url: str) -> str:
    settings = Settings(
        redis_url=Secret("redis://none"), database_url=Secret(url), database_timeout_s=3.0
    )
    with pytest.raises(DatabaseUnavailable) as caught:
        await connect(settings, name="test")
    return caught.value.detail


async def test_a_refused_connection_is_reported_with_its_address() -> None:
    detail = await driver_error(f"postgresql://user:{PASSWORD}@127.0.0.1:1/db")

    assert detail == 'connection to server at "127.0.0.1", port 1 failed: Connection refused'


async def test_a_server_that_does_not_answer_is_reported_as_a_timeout(silent_port: int) -> None:
    detail = await driver_error(f"postgresql://user:{PASSWORD}@127.0.0.1:{silent_port}/db")

    assert "timeout" in detail
    assert PASSWORD not in detail


async def test_a_wrong_password_and_a_missing_database_are_reported(database_url: str) -> None:
    parts = urlsplit(database_url)
    address = f"127.0.0.1:{parts.port}"

    wrong = await driver_error(f"postgresql://{parts.username}:{PASSWORD}@{address}/scoreboard")
    missing = await driver_error(
        f"postgresql://{parts.username}:{quote(str(parts.password))}@{address}/nosuch"
    )

    assert "password authentication failed for user" in wrong
    assert PASSWORD not in wrong
    assert 'database "nosuch" does not exist' in missing
    assert str(parts.password) not in missing


@pytest.mark.parametrize(
    "address",
    [
        f"postgresql://user:a@{PASSWORD}@nosuch.invalid/db",
        f"postgresql://user:a/{PASSWORD}@nosuch.invalid/db",
        f"postgresql://user:a@{PASSWORD}/db",
    ],
)
async def test_a_password_parsed_as_a_host_is_not_shown(address: str) -> None:
    detail = await driver_error(address)

    assert PASSWORD not in detail
    assert "resolve host" in detail


@pytest.mark.parametrize("words", [("board", "list"), ("db", "migrate"), ("db", "status")])
@pytest.mark.parametrize("parameters", [f"nosuch={PASSWORD}", f"password={PASSWORD}%00"])
def test_a_url_that_libpq_cannot_read_is_an_invalid_setting(
    parameters: str, words: tuple[str, ...], command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Incident: db migrate repeated the value that libpq refused, and it was the password."""
    monkeypatch.setenv("DATABASE_URL", f"postgresql://user@127.0.0.1:1/db?{parameters}")

    done = command(*words)

    assert done.code == 1
    assert "A setting is invalid: DATABASE_URL is not a URL of PostgreSQL" in done.err
    assert PASSWORD not in done.err


def test_commands_and_migrations_report_a_refused_connection(
    command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"postgresql://user:{PASSWORD}@127.0.0.1:1/db"
    monkeypatch.setenv("DATABASE_URL", url)

    for words in (("board", "list"), ("db", "migrate"), ("db", "status")):
        done = command(*words)
        assert done.code == 69
        assert "Connection refused" in done.err, words
        assert PASSWORD not in done.err
    with pytest.raises(DatabaseUnavailable, match="Connection refused"):
        migrations.migrate(url)
