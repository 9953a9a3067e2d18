"""Redis Cluster: redis-py's client with this project's connections, and the owners of slots.

redis-py's client serves reads and administration. Batches of updates and reads have connections of
their own to each primary (scoreboard.store.batching) and need to know only which primary owns a
partition: ``SlotMap``.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any, Final, Self
from weakref import WeakValueDictionary

import redis.asyncio as aioredis
from redis.asyncio.cluster import ClusterNode, PipelineCommand, RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    ClusterError,
    MovedError,
    NoPermissionError,
    RedisClusterException,
    RedisError,
    ResponseError,
    SlotNotCoveredError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from scoreboard.model import BOARDS_KEPT_MAX, Partition
from scoreboard.runtime.telemetry import get_logger
from scoreboard.store.keys import PartitionKeys
from scoreboard.store.replies import CONNECTION_ERRORS, NO_CLUSTER, PARSE_ERRORS

Address = tuple[str, int]
"""Host and port of a server of a cluster."""

SLOTS: Final = 16_384

REFRESH_WAIT_S: Final = 0.25
"""Longest wait of a call while the owners of the slots are read again: a server may not answer."""

SLOTS_READS: Final = 2
"""Servers that can be asked for the owners of the slots, one after the other, in one read."""

_SPARE_CONNECTIONS: Final = 2
"""Connections to each server for reading the owners of the slots, besides those of calls."""

_SCRIPTS: Final = frozenset({"EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO"})
_MANY_KEYS: Final = frozenset({"UNLINK", "DEL", "EXISTS"})
_log = get_logger(__name__)


@lru_cache(maxsize=8 * BOARDS_KEPT_MAX)
def slot_of(partition: Partition) -> int:
    """Return the slot of all keys of a partition."""
    return key_slot(PartitionKeys(partition).meta.encode())


def keys_of(command: Sequence[Any]) -> Sequence[Any]:
    """Return the keys of a command as this project sends it.

    redis-py asks the server for them, except for EVAL and EVALSHA.
    """
    name = str(command[0]).upper()
    if name in _SCRIPTS:
        return command[3 : 3 + int(command[2])]
    if name in _MANY_KEYS:
        return command[1:]
    if name == "XREADGROUP":
        at = next(at for at, word in enumerate(command) if word in {"STREAMS", b"STREAMS"})
        streams = command[at + 1 :]
        return streams[: len(streams) // 2]
    return command[1:2]


class _AskedElsewhereError(ResponseError):
    """The slot of a command is moving to a server, which has its key already.

    redis-py would send ASKING on one of that server's connections and the command on another.
    """

    def __init__(self, error: AskError) -> None:
        super().__init__(f"ASK {error.slot_id} {error.host}:{error.port}")
        self.address: Address = error.host, error.port


_REDIRECTIONS: Final = (MovedError, _AskedElsewhereError, TryAgainError)


class ClusterConnection:
    """Mixin of the connections of a ClusterClient."""

    async def read_response(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 (as redis-py declares it)
        """Read one reply.

        Raises what redis-py raises, but CLUSTERDOWN as a plain refusal: redis-py would close all
        connections of the client, also those that wait for a reply of another server. Raises
        _AskedElsewhereError in place of AskError.
        """
        connection: Any = super()
        try:
            return await connection.read_response(*args, **options)
        except MovedError:
            raise
        except AskError as error:
            raise _AskedElsewhereError(error) from None
        except ClusterDownError as error:
            raise ResponseError(f"CLUSTERDOWN {error}") from None


def _translated(error: Exception) -> RedisError:
    """Return the error to raise for one of redis-py's cluster client.

    A refused login, or a missing right to CLUSTER SLOTS, is hidden in it.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, AuthenticationError | NoPermissionError):
            return seen
        if isinstance(seen, ResponseError) and "cluster support disabled" in str(seen):
            return ResponseError(NO_CLUSTER)
        seen = seen.__cause__ or seen.__context__
    return RedisConnectionError(f"the cluster cannot be used: {error}")


class _NoCommandTable:
    """In place of redis-py's table of commands, which needs the right to COMMAND."""

    async def initialize(self, node: ClusterNode) -> None:
        pass


class ClusterClient(RedisCluster):
    """redis-py's cluster client: bounded, without retries, with this project's connections.

    A call that waits for a server that is away fails with its time limit; then the owners of the
    slots are read again. Neither holds up calls to other servers.
    """

    def __init__(
        self,
        hosts: Sequence[Address],
        connection_class: type[AbstractConnection],
        connection_options: Mapping[str, Any],
        *,
        connections: int,
        timeout_s: float,
    ) -> None:
        """Bound the calls at once by ``connections`` for each server.

        A call waits at most ``timeout_s`` to begin.
        """
        super().__init__(
            startup_nodes=[ClusterNode(*host) for host in hosts],
            require_full_coverage=False,
            retry=Retry(NoBackoff(), 0),
            reinitialize_steps=0,  # it would close all connections
            protocol=2,
            decode_responses=bool(connection_options["decode_responses"]),
        )
        # The node manager keeps this very dict for the nodes that it finds.
        self.connection_kwargs.update(connection_options)
        self.connection_kwargs["connection_class"] = connection_class
        # Calls are bounded below; a server at its bound would refuse to name the owners of slots.
        # Twice as many: a redirected call counts at the server that redirected it.
        self.connection_kwargs["max_connections"] = 2 * connections + _SPARE_CONNECTIONS
        nodes = [ClusterNode(*host, **self.connection_kwargs) for host in hosts]
        self.nodes_manager.startup_nodes = {node.name: node for node in nodes}
        self.commands_parser: Any = _NoCommandTable()
        self._connections = connections
        self._rooms: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._timeout_s = timeout_s
        self._refresh: asyncio.Task[Exception | None] | None = None
        self._failed_node: str | None = None
        """The server that did not answer last; it is asked last for the owners of the slots."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 (as redis-py declares it)
        """Send a command to the server that owns its key.

        Raises RedisError; RedisConnectionError if no server can be asked.
        """
        try:
            await self._load_slots()
            async with self._room_at(self._server_of(args, options.get("target_nodes"))):
                return await super().execute_command(*args, **options)
        except _AskedElsewhereError as asked:
            return await self._ask_at(asked.address, args, options)
        except (RedisConnectionError, RedisTimeoutError) as error:
            self._failed_node = getattr(error, "last_failed_node_name", self._failed_node)
            raise
        except (RedisClusterException, ClusterError, AttributeError, LookupError) as error:
            raise _translated(error) from error

    async def _ask_at(
        self, address: Address, command: Sequence[Any], options: Mapping[str, Any]
    ) -> Any:  # noqa: ANN401 (any reply)
        """Send a command, with ASKING, to the server that its slot is moving to.

        Raises RedisError; RedisConnectionError while some of its keys have not arrived.
        """
        node = self.get_node(*address)
        if node is None:
            node = ClusterNode(*address, "primary", **self.connection_kwargs)
            self.nodes_manager.set_nodes(self.nodes_manager.nodes_cache, {node.name: node})
        asking = PipelineCommand(0, "ASKING")
        following = PipelineCommand(1, *command, **options)
        async with self._room_at(node.name):
            await node.execute_pipeline([asking, following])
        reply: Any = following.result
        if isinstance(reply, _REDIRECTIONS):
            raise RedisConnectionError("the slot is moving")
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def send_many(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands in one round trip of each server; an error takes the place of a reply."""
        try:
            await self._load_slots()
        except (RedisClusterException, ClusterError) as error:
            raise _translated(error) from error
        replies: list[Any] = [None] * len(commands)
        by_node: dict[str, list[int]] = {}
        for place, command in enumerate(commands):
            try:
                node = self.node_of(keys_of(command)[0])
            except RedisClusterException as error:
                replies[place] = _translated(error)
                self.forget_slots()
            else:
                by_node.setdefault(node.name, []).append(place)

        async def send(name: str, places: list[int]) -> None:
            found = await self._ask(name, [commands[place] for place in places])
            for place, reply in zip(places, found, strict=True):
                replies[place] = reply

        async with asyncio.TaskGroup() as group:
            for name, places in by_node.items():
                group.create_task(send(name, places))
        return replies

    async def _ask(self, name: str, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands to one server; an error takes the place of a reply."""
        try:
            found = await self._send_at_once(name, commands)
        except (RedisError, OSError, RedisClusterException, AttributeError, LookupError) as error:
            found = [error] * len(commands)
        for place, reply in enumerate(found):
            if isinstance(reply, _REDIRECTIONS):
                try:
                    found[place] = await self.execute_command(*commands[place])
                except (RedisError, OSError) as error:
                    found[place] = error
            elif isinstance(reply, RedisClusterException | AttributeError | LookupError):
                found[place] = _translated(reply)
            if isinstance(found[place], RedisConnectionError | RedisTimeoutError | OSError):
                self._failed_node = name
                self.forget_slots()
        return found

    async def _send_at_once(self, name: str, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands to one server; redirections and errors take the places of replies.

        redis-py would follow a redirection within the call, and so need a second one of the bound.
        """
        async with self._room_at(name):
            pipe = self.pipeline()
            for command in commands:
                pipe.execute_command(*command)
            return await pipe.execute(raise_on_error=False, allow_redirections=False)

    async def initialize(self, *args: Any, **options: Any) -> RedisCluster:  # noqa: ANN401 (as redis-py declares it)
        """Read the owners of the slots; when they are known, only begin to read them again.

        Raises RedisError if they are not known and no server answers.
        """
        if self._initialize and self.nodes_manager.slots_cache:
            self._begin_refresh()
        elif self._initialize:
            try:
                await super().initialize(*args, **options)
            except (RedisClusterException, ClusterError) as error:
                raise _translated(error) from error
        return self

    def _begin_refresh(self) -> "asyncio.Task[Exception | None]":
        if self._refresh is None or self._refresh.done():
            self._initialize = False  # a call that fails from now on asks for another one
            self._refresh = asyncio.create_task(self._read_slots())
        return self._refresh

    async def _read_slots(self) -> Exception | None:
        """Read the owners of the slots again; return why that failed."""
        try:
            async with asyncio.timeout(SLOTS_READS * self._timeout_s):
                await self.nodes_manager.initialize(last_failed_node_name=self._failed_node)
        except Exception as error:  # noqa: BLE001 (for those who wait for it)
            self._initialize = True
            return error
        return None

    async def _load_slots(self) -> None:
        """Wait until the owners of the slots are known, and a moment for newer ones."""
        await self.initialize()
        if self._refresh is not None and not self._refresh.done():
            await asyncio.wait({self._refresh}, timeout=REFRESH_WAIT_S)

    async def __aenter__(self) -> Self:
        """Return the client, as a plain one: it connects when it is used."""
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Close the connections."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections, also while the owners of the slots are to be read again."""
        if self._refresh is not None:
            self._refresh.cancel()
            await asyncio.wait({self._refresh})
        await super().aclose()
        await self.nodes_manager.aclose()
        await self.nodes_manager.aclose("startup_nodes")

    def _server_of(self, command: Sequence[Any], target: ClusterNode | None) -> str:
        """Return the name of the server that gets a command; empty if redis-py chooses one."""
        if isinstance(target, ClusterNode):
            return target.name
        keys = keys_of(command)
        if not keys:
            return ""
        return self.node_of(keys[0].decode() if isinstance(keys[0], bytes) else str(keys[0])).name

    @asynccontextmanager
    async def _room_at(self, node: str) -> AsyncIterator[None]:
        room = self._rooms.setdefault(node, asyncio.Semaphore(self._connections))
        try:
            async with asyncio.timeout(self._timeout_s):
                await room.acquire()
        except TimeoutError:
            raise RedisConnectionError("no connection was free in time") from None
        try:
            yield
        finally:
            room.release()

    def node_of(self, key: str) -> ClusterNode:
        """Return the primary that owns a key, once the slots are known.

        Raises RedisClusterException if none does.
        """
        slot = key_slot(key.encode())
        if slot not in self.nodes_manager.slots_cache:
            raise SlotNotCoveredError(f"no primary has slot {slot}")
        return self.nodes_manager.get_node_from_slot(slot)

    async def primaries(self) -> list[ClusterNode]:
        """Return the primaries as the servers name them now.

        Raises RedisConnectionError if no server answers.
        """
        try:
            self.forget_slots()
            await self.initialize()
            error = await asyncio.shield(self._refresh) if self._refresh is not None else None
            if error is not None:
                raise error
        except (RedisClusterException, ClusterError) as error:
            raise _translated(error) from error
        owners = {nodes[0] for nodes in self.nodes_manager.slots_cache.values() if nodes}
        return sorted(owners, key=lambda node: node.name)

    async def options_at(self, key: str) -> dict[str, Any]:
        """Return the option that sends a command to the server that owns a key.

        Raises RedisConnectionError if no server can be asked, or none owns the key.
        """
        try:
            await self._load_slots()
            return {"target_nodes": self.node_of(key)}
        except (RedisClusterException, ClusterError) as error:
            raise _translated(error) from error

    async def ask_any(self, *command: str) -> Any:  # noqa: ANN401 (any reply)
        """Send a command to the primaries, one after the other, until one answers.

        Raises RedisError.
        """
        failure: RedisError | OSError = RedisConnectionError("the cluster has no primary")
        nodes = await self.primaries()
        for node in random.sample(nodes, len(nodes)):
            try:
                return await self.execute_command(*command, target_nodes=node)
            except (RedisConnectionError, RedisTimeoutError, OSError) as error:
                failure = error
        raise failure

    async def close_outdated(self) -> None:
        """Close idle connections: the secret with which they logged in has changed."""
        manager = self.nodes_manager
        for node in {*manager.nodes_cache.values(), *manager.startup_nodes.values()}:
            await node.disconnect_free_connections()

    def forget_slots(self) -> None:
        """Read the owners of the slots again before the next call."""
        self._initialize = True

    async def _split_command_across_slots(self, command: str, *keys: Any) -> int:  # noqa: ANN401 (as redis-py declares it)
        # All keys of a command have one slot. redis-py's pipeline would ignore the bound on calls.
        return int(await self.execute_command(command, *keys))

    async def _determine_slot(self, command: str, *args: Any) -> int:  # noqa: ANN401 (as redis-py declares it)
        keys = keys_of((command, *args))
        if not keys:
            raise RedisConnectionError(f"{command} names no key")
        key = keys[0]
        return key_slot(key if isinstance(key, bytes) else str(key).encode())


async def primaries_of(client: aioredis.Redis) -> list[tuple[str, dict[str, Any]]]:
    """Return the primaries: their names, and the options that send a command to each.

    A single server has no name and needs no options.

    Raises RedisConnectionError if no server of a cluster answers.
    """
    if not isinstance(client, ClusterClient):
        return [("", {})]
    return [(node.name, {"target_nodes": node}) for node in await client.primaries()]


async def load_script(client: aioredis.Redis, text: bytes, keys: Iterable[str]) -> None:
    """Load a script on the server of each key; without keys, on every primary.

    Raises RedisError, RedisConnectionError.
    """
    if not isinstance(client, ClusterClient):
        await client.execute_command("SCRIPT LOAD", text)
        return
    found = [await client.options_at(key) for key in keys]
    nodes = {one["target_nodes"] for one in found} or set(await client.primaries())
    for node in nodes:
        await client.execute_command("SCRIPT LOAD", text, target_nodes=node)


async def send_many(client: aioredis.Redis, commands: Sequence[Sequence[Any]]) -> list[Any]:
    """Send commands in one round trip, or in one of each server of a cluster.

    Each is named as redis-py names it and has its key first. An error takes the place of a reply;
    what keeps all commands from a single server is raised.
    """
    if isinstance(client, ClusterClient):
        return await client.send_many(commands)
    async with client.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        return await pipe.execute(raise_on_error=False)


class SlotMap:
    """Which primary owns each slot, as the servers last said."""

    def __init__(self, client: ClusterClient) -> None:
        """Use ``client``, which has no other purpose, to ask the servers."""
        self._client = client
        self._owners: list[Address | None] = [None] * SLOTS
        self.primaries: frozenset[Address] = frozenset()
        """Servers that own slots; empty until ``refresh`` has succeeded."""
        self._is_failing = False

    async def refresh(self, limit_s: float) -> bool:
        """Ask a server; return whether one answered in time. Log the first failure of several."""
        try:
            async with asyncio.timeout(limit_s):
                await self._read()
        except (*CONNECTION_ERRORS, RedisError, *PARSE_ERRORS) as error:
            if not self._is_failing:
                _log.warning("cluster_unreachable", error=type(error).__name__)
            self._is_failing = True
            return False
        self._is_failing = False
        return True

    async def _read(self) -> None:
        await self._client.primaries()
        owners: list[Address | None] = [None] * SLOTS
        for slot, nodes in self._client.nodes_manager.slots_cache.items():
            if nodes:
                owners[slot] = nodes[0].host, int(nodes[0].port)
        self._owners = owners
        self.primaries = frozenset(owner for owner in owners if owner is not None)

    def owner(self, partition: Partition) -> Address | None:
        """Return the primary of a partition; None if none is known."""
        return self._owners[slot_of(partition)]

    def owner_of(self, channel: str) -> Address | None:
        """Return the primary of the slot of a channel; None if none is known."""
        return self._owners[key_slot(channel.encode())]

    def move(self, slot: int, owner: Address) -> None:
        """Note what a server said: a slot has another owner."""
        self._owners[slot] = owner
        self.primaries |= {owner}

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()
