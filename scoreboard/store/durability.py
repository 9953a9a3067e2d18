"""Checks that Redis keeps what it acknowledges: which of its settings are required.

The api and the flusher do not start on a Redis that may lose acknowledged actions, unless
SCOREBOARD_UNSAFE_REDIS accepts that. A managed server that refuses CONFIG GET is accepted with
SCOREBOARD_VOUCHED_REDIS; what can be read of it must still be right.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final, Literal

import redis.asyncio as aioredis
from msgspec import Struct
from redis.exceptions import ResponseError

from scoreboard.errors import RedisUnavailable, UnexpectedReply, UnsafeRedis
from scoreboard.runtime.settings import Settings
from scoreboard.store.cluster import primaries_of
from scoreboard.store.replies import checking_reply, read_reply

REQUIRED_SETTINGS: Final = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
}
"""Without these an acknowledged action may be lost, or counted twice after an eviction."""

REQUIRED_IF_COMMITTED: Final = {"maxmemory-policy": "noeviction"}
"""The same if an update is answered after its COMMIT: PostgreSQL keeps it, not Redis's disk."""

EVICTION: Final = "maxmemory-policy"
"""The required setting that INFO shows as well, also of a server that refuses CONFIG GET."""

MIN_REPLICAS: Final = "min-replicas-to-write"
"""Without it an isolated primary would go on accepting updates that no replica receives."""


class Requirements(Struct, frozen=True):
    """What an acknowledgement needs of Redis; ``is_vouched``: settings may be hidden."""

    acknowledge: Literal["fsync", "replicated", "committed"] = "fsync"
    replicas: int = 0
    is_vouched: bool = False

    @classmethod
    def of(cls, settings: Settings) -> "Requirements":
        """Return what the settings of a process require."""
        return cls(
            settings.acknowledge,
            settings.replicas if settings.acknowledge == "replicated" else 0,
            settings.vouched_redis,
        )

    @property
    def settings(self) -> Mapping[str, str]:
        """Return the required settings of the server."""
        return REQUIRED_IF_COMMITTED if self.acknowledge == "committed" else REQUIRED_SETTINGS

    def describe(self) -> str:
        """Return all required settings as text."""
        required = [f"{name} {wanted}" for name, wanted in self.settings.items()]
        required += [f"{MIN_REPLICAS} {self.replicas}"] if self.replicas else []
        return ", ".join(required)


DEFAULT_REQUIREMENTS: Final = Requirements()


class Durability(Struct, frozen=True):
    """The durability of a Redis server; without ``problems`` no acknowledged update can be lost.

    ``vouched`` lists the settings that the server hides and the operator guarantees; empty if the
    server shows its settings. In a cluster it is the durability of all primaries that answer;
    ``away`` names the others: this process cannot reach them, so they are not checked.
    """

    problems: tuple[str, ...]
    vouched: str = ""
    is_primary: bool = True
    version: str = ""
    """Name and version of the server, such as ``Valkey 9.0.1``."""
    primaries: int = 1
    away: tuple[str, ...] = ()

    @property
    def is_safe(self) -> bool:
        """Return whether no acknowledged update can be lost."""
        return not self.problems


async def check_durability(
    client: aioredis.Redis, required: Requirements = DEFAULT_REQUIREMENTS
) -> Durability:
    """Compare the settings of the server, or of a cluster's primaries, with the required ones.

    A managed server may refuse CONFIG GET. That is a problem unless the operator vouches for the
    settings.

    Raises RedisUnavailable, UnexpectedReply.
    """
    servers = await read_reply(
        primaries_of(client), list[tuple[str, dict[str, Any]]], "CLUSTER SLOTS"
    )
    if len(servers) == 1:
        return await _check_server(client, servers[0][1], required)
    asked = (_check_server(client, options, required) for _, options in servers)
    answers = await asyncio.gather(*asked, return_exceptions=True)
    found: dict[str, Durability] = {}
    away: list[str] = []
    for (name, _), answer in zip(servers, answers, strict=True):
        if isinstance(answer, Durability):
            found[name] = answer
        elif isinstance(answer, RedisUnavailable):
            away.append(name)
        else:
            raise answer
    if not found:
        raise RedisUnavailable
    every = found.values()
    return Durability(
        tuple(f"{name}: {problem}" for name, one in found.items() for problem in one.problems),
        max(one.vouched for one in every),
        version=min(one.version for one in every),
        primaries=len(servers),
        away=tuple(away),
    )


async def _check_server(
    client: aioredis.Redis, options: Mapping[str, Any], required: Requirements
) -> Durability:
    async def info(section: str) -> Mapping[str, Any]:
        asked = client.execute_command("INFO", section, **options)
        return await read_reply(asked, dict[str, Any], f"INFO {section}")

    server, replication = await info("server"), await info("replication")
    persistence, memory = await info("persistence"), await info("memory")
    config = await _config_of(client, options)
    with checking_reply("INFO"):
        problems = _problems_of(replication, persistence, memory, config, required)
    vouched = required.describe() if config is None and required.is_vouched else ""
    is_primary = replication.get("role") == "master"
    return Durability(tuple(problems), vouched, is_primary, _version_of(server))


def _version_of(server: Mapping[str, Any]) -> str:
    if "valkey_version" in server:
        return f"Valkey {server['valkey_version']}"
    return f"Redis {server.get('redis_version', 'of an unknown version')}"


async def _config_of(
    client: aioredis.Redis, options: Mapping[str, Any]
) -> Mapping[str, str] | None:
    """Read the required settings; None if the server refuses CONFIG GET."""
    try:
        return await read_reply(
            client.execute_command("CONFIG GET", *REQUIRED_SETTINGS, MIN_REPLICAS, **options),
            dict[str, str],
            "CONFIG GET",
        )
    except (RedisUnavailable, UnexpectedReply) as error:
        if isinstance(error.__cause__, ResponseError):
            return None
        raise


def _problems_of(
    replication: Mapping[str, Any],
    persistence: Mapping[str, Any],
    memory: Mapping[str, Any],
    config: Mapping[str, str] | None,
    required: Requirements,
) -> list[str]:
    problems: list[str] = []
    replicas = required.replicas
    if config is None:
        if not required.is_vouched:
            problems.append("CONFIG GET is refused, so durability cannot be checked")
        wanted = required.settings[EVICTION]
        found = memory.get("maxmemory_policy", wanted)
        if found != wanted:
            problems.append(f"{EVICTION} is {found}, must be {wanted}")
    else:
        problems += [
            f"{name} is {config.get(name, 'unknown')}, must be {wanted}"
            for name, wanted in required.settings.items()
            if config.get(name) != wanted
        ]
        if int(config.get(MIN_REPLICAS) or 0) < replicas:
            problems.append(f"{MIN_REPLICAS} is {config.get(MIN_REPLICAS)}, must be {replicas}")
    if int(replication.get("connected_slaves", 0)) < replicas:
        problems.append(f"{replication.get('connected_slaves')} replicas, must be {replicas}")
    if replication.get("role") != "master":
        problems.append(f"role is {replication.get('role')}, must be master")
    if int(persistence.get("loading", 0)):
        problems.append("the data set is still loading")
    if persistence.get("aof_last_write_status", "ok") != "ok":
        problems.append("the last write to the append-only file failed")
    return problems


async def require_durability(client: aioredis.Redis, settings: Settings) -> Durability:
    """Check durability and raise if acknowledged actions may be lost and settings forbid that.

    Raises UnsafeRedis with every problem named, RedisUnavailable.
    """
    required = Requirements.of(settings)
    found = await check_durability(client, required)
    if found.problems and not settings.unsafe_redis:
        raise UnsafeRedis(
            f"Redis may lose acknowledged actions: {'; '.join(found.problems)}. Fix its "
            "configuration; or, if a managed server hides its settings and has "
            f"{required.describe()}, set SCOREBOARD_VOUCHED_REDIS=true; or accept the risk with "
            "SCOREBOARD_UNSAFE_REDIS=true"
        )
    return found
