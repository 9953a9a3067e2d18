"""Creates Redis clients with explicit time limits and no retries.

redis-py's defaults differ between ``Redis(…)`` (ten retries, also after time-outs) and
``from_url`` (none), so every option is set here. Retries are off: callers repeat only calls that
are safe to repeat. With credentials from a secret store, every new connection logs in with the
current ones.
"""

import asyncio
import random
from collections.abc import Mapping
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

import hiredis
import redis.asyncio as aioredis
from redis.asyncio.connection import AbstractConnection, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.backoff import NoBackoff
from redis.credentials import UsernamePasswordCredentialProvider
from redis.exceptions import AuthenticationError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from scoreboard.errors import SecretsUnavailable
from scoreboard.runtime.connection_urls import (
    SentinelAddress,
    parse_cluster_url,
    parse_sentinel_url,
)
from scoreboard.runtime.settings import Settings
from scoreboard.runtime.telemetry import state_gauge
from scoreboard.security.credentials import SecretStore, forget_frames, secret_store
from scoreboard.security.secret_backends import Credentials
from scoreboard.store.cluster import Address, ClusterClient, ClusterConnection, SlotMap
from scoreboard.store.replies import is_not_primary
from scoreboard.store.tls import with_shared_context

REDIS_UP: Final = state_gauge(
    "redis_up", "1 if Redis answered the last request that this process made to measure it"
)


class _HiredisPacking:
    """Packs commands with hiredis, about ten times faster than redis-py's asyncio client.

    The gain is largest for batches and pages: commands of hundreds of arguments.
    """

    def pack_command(self, *args: Any) -> list[bytes]:  # noqa: ANN401 (as redis-py declares it)
        """Return the bytes of one command; its name may be two words, such as SCRIPT LOAD."""
        name, *arguments = args
        words = name.encode().split() if isinstance(name, str) else name.split()
        command: Any = (*words, *arguments)  # its stub allows a tuple of one
        return [hiredis.pack_command(command)]


class _DirectSend:
    """Sends commands in the calling task, within the connection's time limit.

    redis-py sends through ``asyncio.wait_for``, which before Python 3.12 loses a cancellation that
    arrives together with the result (python/cpython#86296), so the calling task would run on.
    uvloop raises RuntimeError for a write to a connection that the peer has reset; redis-py does
    not handle it.
    """

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: ANN401 (as redis-py declares it)
        """Send bytes.

        Raises RedisConnectionError, RedisTimeoutError.
        """
        connection: Any = self
        if not connection.is_connected:
            await connection.connect_check_health(check_health=False)
        if check_health:
            await connection.check_health()
        pieces = [command] if isinstance(command, bytes) else command
        try:
            async with asyncio.timeout(connection.socket_timeout):
                connection._writer.writelines(pieces)  # noqa: SLF001 (there is no public way)
                await connection._writer.drain()  # noqa: SLF001
        except TimeoutError as error:
            await connection.disconnect(nowait=True)
            raise RedisTimeoutError("the command was not sent in time") from error
        except (OSError, RuntimeError) as error:
            await connection.disconnect(nowait=True)
            raise RedisConnectionError("the connection was closed") from error
        except BaseException:
            # Part of the command may have been sent, so the connection cannot be used again.
            await connection.disconnect(nowait=True)
            raise


class _LeavesReplicas:
    """Closes a connection to a server that refuses a command because it is not the primary.

    After a failover the old primary keeps its connections, and the address leads to the new one.
    """

    async def read_response(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 (as redis-py declares it)
        """Read one reply.

        Raises what redis-py raises.
        """
        connection: Any = super()
        try:
            return await connection.read_response(*args, **options)
        except ResponseError as error:
            if is_not_primary(error):
                reconnecting: Any = self
                reconnecting.mark_for_reconnect()
            raise


async def _shake_hands(connection: AbstractConnection) -> None:
    """Run redis-py's handshake with the connection's credentials.

    Raises RedisError, without the frames that hold the password.
    """
    try:
        await connection.on_connect()
    except BaseException as error:
        forget_frames(error)
        raise


class _FixedLogin:
    """A login that does not change, in place of a SecretStore."""

    def __init__(self, login: Credentials) -> None:
        self._login = login

    async def get(self) -> Credentials:
        return self._login

    async def renew(self, refused: Credentials) -> None:
        del refused

    def is_outdated(self, used: Credentials) -> bool:
        del used
        return False


class _Login:
    """Authenticates new connections with a store's credentials, which override the URL's."""

    def __init__(self, store: "SecretStore | _FixedLogin") -> None:
        self._store = store
        self._used: WeakKeyDictionary[AbstractConnection, Credentials] = WeakKeyDictionary()

    async def connect(self, connection: AbstractConnection) -> None:
        """Run the handshake; if it is refused, retry once with renewed credentials.

        Raises RedisError, as the handshake alone would.
        """
        try:
            used = await self._store.get()
        except SecretsUnavailable as error:
            raise RedisConnectionError(error.detail) from error
        try:
            await self._log_in(connection, used)
        except AuthenticationError:
            newer = await self._store.renew(used)
            if newer is None:
                raise
            await self._log_in(connection, newer)

    async def _log_in(self, connection: AbstractConnection, login: Credentials) -> None:
        connection.credential_provider = UsernamePasswordCredentialProvider(
            login.username, login.password.reveal()
        )
        await _shake_hands(connection)
        self._used[connection] = login

    def is_outdated(self, connection: AbstractConnection) -> bool:
        """Return whether the secret has changed since a connection logged in."""
        used = self._used.get(connection)
        return used is not None and self._store.is_outdated(used)


def is_login_outdated(connection: AbstractConnection) -> bool:
    """Return whether the secret has changed since a connection logged in."""
    login = getattr(connection.redis_connect_func, "__self__", None)
    return isinstance(login, _Login) and connection.is_connected and login.is_outdated(connection)


class _OfCluster(ClusterConnection):
    """Replaces a connection of a cluster's client once the secret has changed."""

    def should_reconnect(self) -> bool:
        """Return whether the connection is to be closed before its next use, as redis-py asks."""
        connection: Any = super()
        itself: Any = self
        return connection.should_reconnect() or is_login_outdated(itself)


class _Sentinels:
    """Tells redis-py's connections the address of the primary, in place of its own pool.

    Each connection asks when it connects; a sentinel that does not answer is asked last afterwards.
    """

    is_master = True
    check_connection = False

    def __init__(
        self, address: SentinelAddress, settings: Settings, tls: Mapping[str, Any]
    ) -> None:
        self._hosts = list(address.hosts)
        self._service = address.service
        self._limit_s = 2 * settings.redis_connect_timeout_s
        username, password = address.login
        self._options: dict[str, Any] = {
            "username": username or None,
            "password": password or None,
            "socket_timeout": settings.redis_connect_timeout_s,
            "socket_connect_timeout": settings.redis_connect_timeout_s,
            "retry": Retry(NoBackoff(), 0),
            "retry_on_error": [],
            "decode_responses": True,
            **tls,
        }

    async def get_master_address(self) -> tuple[str, int]:
        """Return host and port of the primary.

        Raises RedisConnectionError if no sentinel knows one, RedisTimeoutError.
        """
        manager = Sentinel(self._hosts, sentinel_kwargs=self._options)
        for sentinel in manager.sentinels:
            pool: Any = sentinel.connection_pool
            pool.connection_class = with_shared_context(pool.connection_class)
        try:
            async with asyncio.timeout(self._limit_s):
                host, port = await manager.discover_master(self._service)
        except TimeoutError:
            raise RedisTimeoutError("the sentinels did not answer in time") from None
        except MasterNotFoundError:
            raise RedisConnectionError(f"no sentinel names a primary {self._service}") from None
        except BaseException as error:
            forget_frames(error)
            raise
        finally:
            await manager.aclose()
        answered: Any = manager.sentinels[0].connection_pool.connection_kwargs
        first = answered["host"], answered["port"]
        self._hosts.sort(key=lambda one: one != first)
        return str(host), int(port)


class _Pool(aioredis.BlockingConnectionPool):
    """A pool whose connections are closed after a change of the secret."""

    async def close_outdated(self) -> None:
        """Close idle connections that logged in with an older value."""
        for connection in tuple(self._available_connections):
            if is_login_outdated(connection):
                # No await: during one, a task could get the connection that is being closed.
                await connection.disconnect(nowait=True)

    async def release(self, connection: AbstractConnection) -> None:
        """Return a connection to the pool; close it if it logged in with an older value."""
        if is_login_outdated(connection):
            connection.mark_for_reconnect()
        await super().release(connection)


def make_pool(
    settings: Settings,
    *,
    name: str,
    decode: bool = True,
    connections: int = 16,
    login: Credentials | None = None,
) -> aioredis.BlockingConnectionPool:
    """Create a bounded pool; the wait for a free connection has the time limit of a call.

    ``login`` overrides the login of the settings. The pool of a cluster leads to no server: its
    owner names one for each connection.

    Raises ValueError for an invalid Redis URL, SettingInvalid if a secret is not named.
    """
    store = secret_store(settings, "redis") if login is None else None
    source = store if login is None else _FixedLogin(login)
    url = settings.redis_url.reveal()
    sentinels, cluster = parse_sentinel_url(url), parse_cluster_url(url)
    if sentinels is not None:
        url = sentinels.node_url
    elif cluster is not None:
        url = cluster.node_url
    pool = _Pool.from_url(
        url,
        max_connections=connections,
        timeout=settings.redis_timeout_s,
        socket_timeout=settings.redis_timeout_s,
        socket_connect_timeout=settings.redis_connect_timeout_s,
        # redis-py's connection over a Unix socket does not take the argument.
        **({} if url.startswith("unix:") else {"socket_keepalive": True}),
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[],
        health_check_interval=0,
        decode_responses=decode,
        encoding_errors="replace",  # invalid UTF-8 must not raise in the reader
        protocol=2,
        client_name=f"scoreboard-{name}",
        redis_connect_func=_Login(source).connect if source else _shake_hands,
    )
    if store is not None:
        store.on_change(pool.close_outdated)
    # The connection class follows from the URL's scheme.
    kind: type[AbstractConnection] = pool.connection_class
    if sentinels is not None:
        kind = _follow(pool, sentinels, settings)
    # In a cluster a server that is not the primary answers which one is, and keeps its connections.
    reads = _LeavesReplicas if cluster is None else _OfCluster
    kind = with_shared_context(kind)
    pool.connection_class = type(kind.__name__, (reads, _HiredisPacking, _DirectSend, kind), {})
    return pool


def _follow(
    pool: _Pool, sentinels: SentinelAddress, settings: Settings
) -> type[AbstractConnection]:
    """Let the connections of a pool ask sentinels; return their class."""
    has_tls = issubclass(pool.connection_class, SSLConnection)
    tls = {name: text for name, text in pool.connection_kwargs.items() if name.startswith("ssl_")}
    options = {"ssl": True, **tls} if has_tls else {}
    pool.connection_kwargs["connection_pool"] = _Sentinels(sentinels, settings, options)
    return SentinelManagedSSLConnection if has_tls else SentinelManagedConnection


def make_client(
    settings: Settings,
    *,
    name: str,
    decode: bool = True,
    connections: int = 16,
    login: Credentials | None = None,
) -> aioredis.Redis:
    """Create a client with its own connections, of one server or of a cluster.

    Close it with ``aclose``, or use it in ``async with``. ``login`` overrides the login of the
    settings. The client of a cluster is a ClusterClient, which has the same commands.
    """
    cluster = make_cluster_client(
        settings, name=name, decode=decode, connections=connections, login=login
    )
    if cluster is not None:
        return cast("aioredis.Redis", cluster)
    return aioredis.Redis.from_pool(
        make_pool(settings, name=name, decode=decode, connections=connections, login=login)
    )


def make_cluster_client(
    settings: Settings,
    *,
    name: str,
    decode: bool = True,
    connections: int = 16,
    login: Credentials | None = None,
) -> ClusterClient | None:
    """Create a client of a cluster; None if the settings name no cluster."""
    address = parse_cluster_url(settings.redis_url.reveal())
    if address is None:
        return None
    pool = make_pool(settings, name=name, decode=decode, connections=connections, login=login)
    options = {
        option: given
        for option, given in pool.connection_kwargs.items()
        if option not in {"host", "port", "db", "retry", "retry_on_error"}
    }
    client = ClusterClient(
        address.hosts,
        pool.connection_class,
        options,
        connections=connections,
        timeout_s=settings.redis_timeout_s,
    )
    store = secret_store(settings, "redis") if login is None else None
    if store is not None:
        store.on_change(client.close_outdated)
    return client


def make_slot_map(settings: Settings, *, name: str) -> SlotMap | None:
    """Create a map of the slots; None if the settings name no cluster."""
    client = make_cluster_client(settings, name=f"{name}-slots", connections=2)
    return None if client is None else SlotMap(client)


def make_connection(
    settings: Settings, *, name: str, decode: bool = True, address: Address | None = None
) -> AbstractConnection:
    """Create one connection, not yet connected, for owners of single connections.

    ``address`` is the server of a cluster; without one, a host of the URL is chosen at random.
    """
    pool = make_pool(settings, name=name, decode=decode, connections=1)
    cluster = parse_cluster_url(settings.redis_url.reveal())
    if cluster is not None:
        host, port = address or random.choice(cluster.hosts)  # noqa: S311 (no secret)
        pool.connection_kwargs.update(host=host, port=port)
    return pool.make_connection()
