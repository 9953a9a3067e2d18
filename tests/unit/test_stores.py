"""URLs of Redis and PostgreSQL: which are refused, without any part of their password."""

import pytest
from redis.asyncio.connection import SSLConnection
from redis.asyncio.sentinel import SentinelManagedSSLConnection

from scoreboard.errors import DatabaseUnavailable, RedisUnavailable, SettingInvalid
from scoreboard.runtime import settings
from scoreboard.runtime.connection_urls import (
    check_database_url,
    check_redis_url,
    driver_error,
    error_text,
    extract_passwords,
    parse_cluster_url,
    parse_sentinel_url,
    redact_url,
)
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.store.client import make_connection
from scoreboard.store.cluster import keys_of

PASSWORD = "s3cretTiger"  # every part of it must stay hidden
HINT = "s3cret"

GOOD_REDIS = [
    "redis://127.0.0.1:6379/0",
    "redis://localhost",
    "rediss://user:p%2Fw@example.org:7000/3?ssl_cert_reqs=none",
    "redis://[::1]:6379/0",
    "unix:///run/valkey.sock?db=1",
    "redis+sentinel://one,two:26380,[::1]:26381/scores",
    "redis+sentinel://user:p%2Fw@one/scores/3?sentinel_username=watch&sentinel_password=p%2Fw",
    "rediss+sentinel://one/scores?ssl_ca_certs=/ca.pem",
    "redis+cluster://one,two:7001,[::1]:7002",
    "redis+cluster://user:p%2Fw@one/",
    "rediss+cluster://one,two?ssl_ca_certs=/ca.pem",
]
BAD_REDIS = [
    f"http://:{PASSWORD}@127.0.0.1:1",
    f"REDIS://:{PASSWORD}@127.0.0.1:1",
    f"redis:{PASSWORD}",
    f"redis://:{PASSWORD}@127.0.0.1:99999/0",
    f"redis://:{PASSWORD}@127.0.0.1:0/0",
    f"redis://:{PASSWORD}/b@127.0.0.1:1/0",
    f"redis://:{PASSWORD}#b@127.0.0.1:1/0",
    f"redis://:{PASSWORD}@b@127.0.0.1:1/0",
    f"redis://:a:{PASSWORD}@127.0.0.1:1/0",
    f"redis://:{PASSWORD}%zz@127.0.0.1:1/0",
    f"redis://:{PASSWORD} @127.0.0.1:1/0",
    f"redis://:{PASSWORD}@127.0.0.1:port/0",
    f"redis://:{PASSWORD}@127.0.0.1:1/main",
    f"redis://:{PASSWORD}@one,two/0",
    f"redis://:{PASSWORD}@[::1/0",
    f"redis://:{PASSWORD}\n@127.0.0.1:1/0",
    f"redis://127.0.0.1:1/0?password={PASSWORD}",
    f"redis://:{PASSWORD}@127.0.0.1:1/0?socket_timeout=0",
    f"redis://:{PASSWORD}@127.0.0.1:1/0?ssl_cert_reqs=none",
    f"rediss://:{PASSWORD}@127.0.0.1:1/0?ssl_cert_reqs=maybe",
    f"redis://:{PASSWORD}%00@127.0.0.1:1/0",
    f"unix://:{PASSWORD}@",
    f"unix://:{PASSWORD}@/run/valkey.sock?db=main",
    f"redis+sentinel://:{PASSWORD}@one,two",
    f"redis+sentinel://:{PASSWORD}@one,two/",
    f"redis+sentinel://:{PASSWORD}@one,two/scores/main",
    f"redis+sentinel://:{PASSWORD}@one,two:0/scores",
    f"redis+sentinel://one/scores?password={PASSWORD}",
    f"redis+sentinel://one/scores?sentinel_password={PASSWORD}&ssl_cert_reqs=none",
    f"rediss+sentinel://one/scores?sentinel_password={PASSWORD}&ssl_cert_reqs=maybe",
    f"redis+cluster://:{PASSWORD}@one,two/0",
    f"redis+cluster://:{PASSWORD}@one,two:0",
    f"redis+cluster://:{PASSWORD}@{','.join(['one'] * 17)}",
    f"redis+cluster://:{PASSWORD}@one?ssl_cert_reqs=none",
    f"redis+cluster://one?password={PASSWORD}",
]
GOOD_DATABASE = [
    "postgresql://scoreboard@127.0.0.1:5432/scoreboard",
    "postgres://u:p%40w@example.org/x?sslmode=verify-full",
    "postgresql://one:5432,two:5433/x?target_session_attrs=primary",
    "postgresql:///scoreboard",
    "postgresql://[::1]:5432/x",
    "postgresql://u@%2Frun%2Fpostgresql/x",
]
BAD_DATABASE = [
    f"postgresql+psycopg://scott:{PASSWORD}@127.0.0.1:1/db",
    f"mysql://scott:{PASSWORD}@127.0.0.1:1/db",
    f"host=127.0.0.1 password={PASSWORD}",
    f"postgresql://scott:{PASSWORD}/b@127.0.0.1:1/db",
    f"postgresql://scott:{PASSWORD}@ss@127.0.0.1:1/db",
    f"postgresql://scott:{PASSWORD}#b@127.0.0.1:1/db",
    f"postgresql://scott:{PASSWORD}%zz@127.0.0.1:1/db",
    f"postgresql://scott:{PASSWORD}@127.0.0.1:99999/db",
    f"postgresql://scott:{PASSWORD}@127.0.0.1:x/db",
    f"postgresql://scott:{PASSWORD}@127.0.0.1/db/more",
    f"postgresql://scott:{PASSWORD}%00@127.0.0.1/db",
    f"postgresql://scott@127.0.0.1/db?password={PASSWORD}%00",
]


@pytest.mark.parametrize("url", GOOD_REDIS)
def test_a_redis_url_is_accepted(url: str) -> None:
    check_redis_url(url)


@pytest.mark.parametrize("url", GOOD_DATABASE)
def test_a_postgresql_url_is_accepted(url: str) -> None:
    check_database_url(url)


@pytest.mark.parametrize("url", BAD_REDIS)
def test_an_invalid_redis_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(SettingInvalid) as refused:
        settings.load({"REDIS_URL": url})

    assert refused.value.detail.startswith("REDIS_URL is not a URL of Redis: ")
    assert HINT not in refused.value.detail
    assert "\n" not in refused.value.detail
    assert HINT not in repr(refused.value.__context__)


@pytest.mark.parametrize("url", BAD_DATABASE)
def test_an_invalid_postgresql_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(SettingInvalid) as refused:
        settings.load({"REDIS_URL": "redis://localhost", "DATABASE_URL": url})

    assert refused.value.detail.startswith("DATABASE_URL is not a URL of PostgreSQL: ")
    assert HINT not in refused.value.detail
    assert HINT not in repr(refused.value.__context__)


def test_a_url_of_sentinels_has_the_login_of_both_kinds_of_servers() -> None:
    found = parse_sentinel_url(
        f"rediss+sentinel://me:{PASSWORD}@one,[::1]:7/scores/3"
        f"?ssl_ca_certs=/ca.pem&sentinel_username=you&sentinel_password={PASSWORD}%2F+"
    )

    assert found is not None
    assert found.node_url == f"rediss://me:{PASSWORD}@localhost/3?ssl_ca_certs=%2Fca.pem"
    assert (found.hosts, found.service) == ((("one", 26379), ("::1", 7)), "scores")
    assert found.login == ("you", f"{PASSWORD}/+")
    assert HINT not in repr(found)
    assert parse_sentinel_url("redis://localhost") is None


def test_a_url_of_a_cluster_has_the_login_of_every_server() -> None:
    found = parse_cluster_url(f"rediss+cluster://me:{PASSWORD}@one,[::1]:7?ssl_ca_certs=/ca.pem")

    assert found is not None
    assert found.node_url == f"rediss://me:{PASSWORD}@localhost/0?ssl_ca_certs=/ca.pem"
    assert found.hosts == (("one", 6379), ("::1", 7))
    assert HINT not in repr(found)
    assert parse_cluster_url("redis://localhost") is None


def test_connections_to_a_server_of_a_cluster_use_its_address_and_tls() -> None:
    url = Secret(f"rediss+cluster://me:{PASSWORD}@one,two:7?ssl_ca_certs=/ca.pem")
    settings = Settings(redis_url=url)
    connection = make_connection(settings, name="test", address=("three", 8))

    assert isinstance(connection, SSLConnection)
    assert connection.ssl_context.ca_certs == "/ca.pem"
    assert (connection.host, connection.port, connection.username) == ("three", 8, "me")
    chosen = make_connection(settings, name="test")
    assert isinstance(chosen, SSLConnection)
    assert (chosen.host, chosen.port) in {("one", 6379), ("two", 7)}


COMMANDS: list[tuple[tuple[object, ...], list[object]]] = [
    (("EVALSHA", "sha", 2, "a", "b", "c"), ["a", "b"]),
    (("EVALSHA_RO", "sha", 1, "a", "c"), ["a"]),
    (("EVALSHA_RO", "sha", 0, "c"), []),
    (("XREADGROUP", b"GROUP", "g", "me", b"BLOCK", 5, b"STREAMS", "a", "b", ">", ">"), ["a", "b"]),
    (("UNLINK", "a", "b"), ["a", "b"]),
    (("XINFO STREAM", "a"), ["a"]),
    (("HMGET", "a", "field", "field"), ["a"]),
    (("TIME",), []),
]


@pytest.mark.parametrize(("command", "keys"), COMMANDS)
def test_the_keys_of_a_command_are_known(command: tuple[object, ...], keys: list[object]) -> None:
    assert list(keys_of(command)) == keys


def test_connections_to_a_primary_behind_sentinels_use_tls() -> None:
    url = Secret("rediss+sentinel://one/scores?ssl_ca_certs=/ca.pem&ssl_check_hostname=no")
    connection = make_connection(Settings(redis_url=url), name="test")

    assert isinstance(connection, SentinelManagedSSLConnection)
    assert connection.ssl_context.ca_certs == "/ca.pem"


def test_a_url_is_shown_without_password_and_parameters() -> None:
    assert redact_url(f"redis://:{PASSWORD}@127.0.0.1:6379/0") == "redis://127.0.0.1:6379/0"
    assert redact_url(f"postgresql://scott:{PASSWORD}@h:1,i:2/db?password={PASSWORD}") == (
        "postgresql://scott@h:1,i:2/db"
    )
    assert HINT not in redact_url(f"redis://:{PASSWORD}@[::1")


@pytest.mark.parametrize("url", [*BAD_REDIS, *BAD_DATABASE])
def test_a_malformed_url_is_shown_without_its_password(url: str) -> None:
    assert HINT not in redact_url(url)


def test_passwords_are_found_in_malformed_urls() -> None:
    assert extract_passwords("postgresql+psycopg://scott:s3c%23ret@h/db") == [
        "s3c%23ret",
        "s3c#ret",
    ]
    assert extract_passwords("redis://:a/b@h", "redis://h/0") == ["a/b"]
    assert extract_passwords(
        "postgresql://h/db?sslmode=off&password=s3c%23ret&sslpassword=t0p"
    ) == [
        "s3c%23ret",
        "s3c#ret",
        "t0p",
    ]


def test_the_cause_is_the_drivers_message_on_one_line() -> None:
    error, cause = DatabaseUnavailable(), OSError("connection failed:\n  Connection refused.\n")
    error.__cause__ = cause
    outer = RedisUnavailable()
    outer.__cause__ = error

    assert driver_error(error) is driver_error(outer) is cause
    assert driver_error(RedisUnavailable()) is None
    assert error_text(cause) == "connection failed: Connection refused"
    assert error_text(TimeoutError()) == "TimeoutError"
    assert len(error_text(OSError("x" * 1000))) == 300
