"""The metrics of connection pools, read from the pools at each scrape."""

from collections.abc import Iterator
from typing import Final
from weakref import WeakValueDictionary

from psycopg_pool import AsyncConnectionPool

from scoreboard.ledger.pool import Connection
from scoreboard.runtime.collectors import Readings

_pools: Final[WeakValueDictionary[str, AsyncConnectionPool[Connection]]] = WeakValueDictionary()
"""The pools of this process by name."""


def export_pool(pool: AsyncConnectionPool[Connection]) -> None:
    """Export the metrics of a pool as long as it exists."""
    _pools[pool.name] = pool


def _sizes() -> Iterator[tuple[tuple[str, str], float]]:
    for name, pool in _pools.items():
        stats = pool.get_stats()
        yield (name, "size"), stats["pool_size"]
        yield (name, "available"), stats["pool_available"]
        yield (name, "max"), stats["pool_max"]


def _waiting() -> Iterator[tuple[tuple[str], float]]:
    for name, pool in _pools.items():
        yield (name,), pool.get_stats().get("requests_waiting", 0)


def _errors() -> Iterator[tuple[tuple[str], float]]:
    for name, pool in _pools.items():
        stats = pool.get_stats()
        yield (name,), stats.get("requests_errors", 0) + stats.get("connections_errors", 0)


Readings(
    "gauge",
    "pg_pool_connections",
    "Connections of a pool: those it has, those of them that are free, and its limit",
    ("pool", "state"),
    _sizes,
    unit="connections",
    normal="size up to max; available above 0",
)
Readings(
    "gauge",
    "pg_pool_waiting",
    "Requests that wait for a connection of a pool",
    ("pool",),
    _waiting,
    unit="requests",
    normal="0, or briefly some",
)
Readings(
    "counter",
    "pg_pool_errors_total",
    "Failed connection attempts of a pool, and requests for a connection that ended without one",
    ("pool",),
    _errors,
    unit="errors",
    normal="0; increases while PostgreSQL is away",
)
