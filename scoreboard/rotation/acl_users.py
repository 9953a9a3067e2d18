"""Rotation of ACL users of Redis or Valkey: one user with two passwords for a while.

Servers get SHA-256 hashes of passwords, which MONITOR and SLOWLOG may show. ACLs are not
replicated, so every node is changed: the primary last. The nodes of a cluster are those that it
knows, also one that is away: it would come back with the old passwords.
"""

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
from redis import asyncio as aioredis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from scoreboard.errors import OperatorMistake, RedisUnavailable, SettingInvalid
from scoreboard.rotation.logins import read_login, replace_login
from scoreboard.rotation.steps import refused
from scoreboard.runtime.connection_urls import check_redis_url, parse_cluster_url, redact_url
from scoreboard.runtime.settings import Secret, Settings
from scoreboard.security.secret_backends import Credentials
from scoreboard.store.client import make_client
from scoreboard.store.replies import translate_error

_NAME: Final = "rotation"
_TIMEOUT_S: Final = 5.0
"""The least time to connect and for one call: a rotation that stops at a busy server stays open."""


class RedisUser:
    """The ACL user of one service; ``settings`` are those of the rotator.

    ``replicas`` are the URLs of further nodes, without passwords.
    """

    def __init__(self, settings: Settings, replicas: Sequence[str] = ()) -> None:
        """Raise OperatorMistake, without repeating it, for an invalid URL of a replica."""
        for url in replicas:
            try:
                check_redis_url(url)
            except SettingInvalid as error:
                _, _, rule = error.detail.partition(": ")
                raise OperatorMistake(f"The URL of another node is invalid: {rule}") from None
        self._settings: Final = settings
        self._replicas: Final = tuple(replicas)

    def make_document(self, current: Secret) -> Secret:
        """Return the document of the same user with a new password."""
        return replace_login(current, read_login(current, "current").username)

    async def set(self, current: Secret, pending: Secret) -> None:
        """Add the pending password to the user on every node, and save the ACL file."""
        old, new = read_login(current, "current"), read_login(pending, "pending")
        if old.username != new.username:
            raise OperatorMistake(
                f"The pending version is of {new.username} and the current one of {old.username}; "
                "discard it with --discard"
            )
        for node in await self._nodes():
            await self._change(node, new.username, f"#{_hash(new)}")

    async def test(self, pending: Secret) -> None:
        """Log in with the pending password on every node."""
        login = read_login(pending, "pending")
        for node in await self._nodes():
            async with _connect(node, login) as client:
                try:
                    await client.ping()
                except AuthenticationError as error:
                    raise refused(f"{_address(node)} refuses {login.username}") from error
                except NoPermissionError:
                    pass  # the login is accepted; the user may not PING
                except (RedisError, OSError) as error:
                    raise translate_error(error, "PING") from error

    async def retire(self, current: Secret, pending: Secret | None, previous: Secret) -> None:
        """Leave the user with the current and the pending password only."""
        del previous
        login = read_login(current, "current")
        kept = [_hash(login)] + ([_hash(read_login(pending, "pending"))] if pending else [])
        for node in await self._nodes():
            await self._change(
                node, login.username, "resetpass", *(f"#{password}" for password in kept)
            )

    async def disconnect(self, previous: Secret) -> int:
        """End all sessions of the user: Redis does not know which password a session used."""
        ended = 0
        for node in await self._nodes():
            async with _connect(node) as client:
                ended += await _run(
                    client, "CLIENT", "KILL", "USER", read_login(previous, "previous").username
                )
        return ended

    async def _nodes(self) -> list[Settings]:
        """Return the settings that lead to each node.

        Raises RedisUnavailable if no node of a cluster says which there are.
        """
        url = self._settings.redis_url.reveal()
        cluster = parse_cluster_url(url)
        if cluster is None:
            return [self._at(one) for one in (*self._replicas, url)]
        failure = RedisUnavailable()
        for address in cluster.hosts:
            try:
                async with _connect(self._at(cluster.url_of(*address))) as client:
                    text = await _run(client, "CLUSTER", "NODES")
            except RedisUnavailable as error:
                failure = error
            else:
                found = [cluster.url_of(*one) for one in addresses_of(text)]
                return [self._at(one) for one in (*self._replicas, *found)]
        raise failure

    def _at(self, url: str) -> Settings:
        return msgspec.structs.replace(self._settings, redis_url=Secret(url))

    async def _change(self, node: Settings, user: str, *rules: str) -> None:
        async with _connect(node) as client:
            # ACL SETUSER would create a missing user.
            if await _run(client, "ACL", "GETUSER", user) is None:
                raise OperatorMistake(f"{_address(node)} has no ACL user {user}")
            await _run(client, "ACL", "SETUSER", user, *rules)
            await _run(client, "ACL", "SAVE")


def addresses_of(text: str) -> list[tuple[str, int]]:
    """Return host and port of each node in a reply to CLUSTER NODES, by name if it has one."""
    found: list[tuple[str, int]] = []
    for line in text.splitlines():
        # ID IP:PORT@BUS,NAME,… FLAGS …
        address, *names = line.split()[1].split(",")
        host, _, port = address.partition("@")[0].rpartition(":")
        name = names[0] if names else ""
        if not {"noaddr", "handshake"} & set(line.split()[2].split(",")):
            found.append((name or host, int(port)))
    return sorted(found)


@asynccontextmanager
async def _connect(
    node: Settings, login: Credentials | None = None
) -> AsyncIterator[aioredis.Redis]:
    """Connect as the rotator, or as ``login``, with more time than a request has."""
    patient = msgspec.structs.replace(
        node,
        redis_connect_timeout_s=max(node.redis_connect_timeout_s, _TIMEOUT_S),
        redis_timeout_s=max(node.redis_timeout_s, _TIMEOUT_S),
    )
    client = make_client(patient, name=_NAME, connections=1, login=login)
    try:
        yield client
    finally:
        await client.aclose()


async def _run(client: aioredis.Redis, *words: str) -> Any:  # noqa: ANN401 (a reply)
    try:
        return await client.execute_command(*words)
    except (NoPermissionError, ResponseError) as error:
        # The arguments are hashes of passwords, so only the two words are named.
        raise OperatorMistake(f"{words[0]} {words[1]} was refused: {error}") from error
    except (RedisError, OSError) as error:
        raise translate_error(error, f"{words[0]} {words[1]}") from error


def _hash(login: Credentials) -> str:
    return hashlib.sha256(login.password.reveal().encode()).hexdigest()


def _address(node: Settings) -> str:
    return redact_url(node.redis_url.reveal())
