"""Real servers for the tests: one Valkey and one PostgreSQL per session, emptied between tests.

Tests that kill, stop or reconfigure a server start their own with `own_valkey` and
`own_postgres`. All listen on free loopback ports and are stopped when the test ends.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from psycopg import sql

from cli.embedded.servers import EmbeddedPostgres, EmbeddedValkey
from tests.support.servers.clusters import Cluster, clients_follow_clusters
from tests.support.servers.postgres_template import copy_postgres

OwnValkey = Callable[..., EmbeddedValkey]
OwnPostgres = Callable[..., EmbeddedPostgres]

_database_numbers = itertools.count(1)
_TEMPLATE = "migrated_template"
_POSTGRES_SETTINGS = {"full_page_writes": "off", "max_connections": "200"}


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Form the cluster of --on-cluster; plain clients made from its URL follow its slots."""
    folder = tmp_path_factory.mktemp("shared-cluster")
    with Cluster(folder, replicas=0) as cluster, clients_follow_clusters():
        yield cluster


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    folder = copy_postgres(tmp_path_factory.mktemp("servers") / "postgres")
    with EmbeddedPostgres(folder, fsync=False, settings=_POSTGRES_SETTINGS) as server:
        yield server


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--on-cluster", action="store_true", help="run tests of redis_url or system on a cluster"
    )
    parser.addoption(
        "--on-sentinel", action="store_true", help="run tests of system on servers with sentinels"
    )


@pytest.fixture
def redis_url(request: pytest.FixtureRequest) -> str:
    """Return the URL of an empty Valkey; with --on-cluster, of an empty cluster.

    Tests marked one_server get a plain one in either case.
    """
    on_cluster = request.config.getoption("--on-cluster")
    if on_cluster and request.node.get_closest_marker("one_server") is None:
        cluster: Cluster = request.getfixturevalue("shared_cluster")
        for node in cluster.primaries():
            node.call("FLUSHALL")
        return cluster.url
    valkey_server: EmbeddedValkey = request.getfixturevalue("valkey_server")
    with redis.Redis.from_url(valkey_server.url) as client:
        client.flushall()
    return valkey_server.url


@pytest.fixture
def empty_database_url(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """Return the URL of a new database without tables."""
    yield from _database(postgres_server, template="template1")


@pytest.fixture
def database_url(postgres_server: EmbeddedPostgres, migrated_template: str) -> Iterator[str]:
    """Return the URL of a new database with the current schema."""
    yield from _database(postgres_server, template=migrated_template)


@pytest.fixture(scope="session")
def migrated_template(postgres_server: EmbeddedPostgres) -> str:
    """Return the name of a migrated database to copy; it has no connections."""
    from scoreboard.ledger.migrations import migrate

    _execute(postgres_server, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(_TEMPLATE)))
    migrate(postgres_server.url_of(_TEMPLATE))
    return _TEMPLATE


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[OwnValkey]:
    """Return a function that starts a Valkey with the options of EmbeddedValkey."""
    with ExitStack() as stack:
        numbers = itertools.count(1)

        def make(data_dir: Path | None = None, **options: Any) -> EmbeddedValkey:
            folder = data_dir or tmp_path / f"valkey-{next(numbers)}"
            return stack.enter_context(EmbeddedValkey(folder, **options))

        yield make


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[OwnPostgres]:
    """Return a function that starts a PostgreSQL with the options of EmbeddedPostgres."""
    with ExitStack() as stack:
        numbers = itertools.count(1)

        def make(data_dir: Path | None = None, **options: Any) -> EmbeddedPostgres:
            folder = copy_postgres(data_dir or tmp_path / f"postgres-{next(numbers)}")
            options = {"fsync": False, "settings": _POSTGRES_SETTINGS} | options
            return stack.enter_context(EmbeddedPostgres(folder, **options))

        yield make


def _database(server: EmbeddedPostgres, *, template: str) -> Iterator[str]:
    name = f"test_{next(_database_numbers)}"
    # Without fsync this copies files in half of the CPU time that the write-ahead log takes.
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY")
    _execute(server, create.format(sql.Identifier(name), sql.Identifier(template)))
    try:
        yield server.url_of(name)
    finally:
        drop = sql.SQL("DROP DATABASE {} WITH (FORCE)")
        _execute(server, drop.format(sql.Identifier(name)))


def _execute(server: EmbeddedPostgres, statement: sql.Composed) -> None:
    with psycopg.connect(server.url_of("postgres"), autocommit=True) as connection:
        connection.execute(statement)
