"""A primary with two replicas that three sentinels watch, all of them the embedded Valkey.

with Sentinels(folder) as sentinels:
    sentinels.url                                # REDIS_URL of a service
    sentinels.primary().kill()                   # a replica is promoted within a few seconds
"""

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import redis

from cli.embedded import child
from cli.embedded.data_folder import write_private
from cli.embedded.server import HOST
from cli.embedded.servers import EmbeddedValkey
from tests.support.eventually import eventually

SERVICE = "scores"
DOWN_AFTER_MS = 1000
NODES = 3


class EmbeddedSentinel(EmbeddedValkey):
    """A sentinel; ``settings`` are the lines about the primary that it watches."""

    title = "Sentinel"
    kind = "sentinel"

    def _launch(self, lock: int) -> child.Process:
        config = self.folder.path / "sentinel.conf"
        if not config.exists():  # afterwards the sentinel keeps what it has learnt in it
            lines = {"bind": HOST, "port": str(self.port), "dir": f'"{self.folder.path}"',
                     "requirepass": f'"{self.password}"',
                     "sentinel sentinel-pass": f'"{self.password}"'}  # fmt: skip
            text = "".join(f"{name} {value}\n" for name, value in (self.settings | lines).items())
            write_private(config, text)
        return child.spawn(
            [str(self._find_program()), str(config), "--sentinel"],
            on_parent_death=self.stop_signal,
            output=self.folder.log,
            pass_fds=[lock],
        )


class Node(EmbeddedValkey):
    """A server that keeps what the sentinels write to its file: its role, when it starts again."""

    def _config(self) -> str:
        config = self.folder.path / "valkey.conf"
        return config.read_text() if config.exists() else super()._config()


class Sentinels:
    """Three servers and three sentinels; the first server begins as the primary."""

    def __init__(
        self,
        folder: Path,
        primary: EmbeddedValkey | None = None,
        *,
        min_replicas_to_write: int = 1,
    ) -> None:
        """``primary`` is a server that runs; without one, a server is started."""
        self._folder = folder
        self._min_replicas_to_write = min_replicas_to_write
        self._given = primary
        self._stack = ExitStack()
        self.nodes: list[EmbeddedValkey] = []
        self.sentinels: list[EmbeddedSentinel] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            first = self._given or stack.enter_context(Node(self._folder / "node-0"))
            self.nodes = [first]
            first.settings |= self._settings  # after a failover it starts again as a replica
            with redis.Redis.from_url(first.url) as client:
                for name, value in self._settings.items():
                    client.config_set(name, value)
                client.config_rewrite()
            for number in range(1, NODES):
                self.nodes.append(stack.enter_context(self._replica(number)))
            for number in range(NODES):
                self.sentinels.append(stack.enter_context(self._sentinel(number)))
            eventually(self._is_complete)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """The URL that names the sentinels, with both passwords."""
        hosts = ",".join(f"{HOST}:{one.port}" for one in self.sentinels)
        password = self.nodes[0].password
        return f"redis+sentinel://:{password}@{hosts}/{SERVICE}/0?sentinel_password={password}"

    def primary(self) -> EmbeddedValkey:
        """Return the server that most sentinels name."""
        found = [self._ask(one)["port"] for one in self.sentinels if one.is_running]
        port = max(found, key=found.count)
        return next(node for node in self.nodes if node.port == port)

    def fail_over(self) -> None:
        """Kill the primary and wait until the sentinels name another one."""
        before = self.primary()
        before.kill()
        self.wait_until_replaced(before)

    def wait_until_replaced(self, before: EmbeddedValkey) -> None:
        """Wait until the sentinels name another primary than the one of before."""
        eventually(lambda: self.primary() is not before)

    def switch(self) -> None:
        """Let the sentinels promote a replica while the primary runs."""
        before, one = self.primary(), self.sentinels[0]

        def is_promoted() -> bool:
            # A request is given up if the sentinel has not heard of the replicas lately.
            with (
                redis.Redis(HOST, one.port, password=one.password) as client,
                suppress(redis.ResponseError),  # one is in progress
            ):
                client.execute_command("SENTINEL", "FAILOVER", SERVICE, "COORDINATED")
            return self.primary() is not before

        eventually(is_promoted, every_s=2.0)

    def repaired(self) -> None:
        """Start every server and sentinel again; wait until the primary has all replicas."""
        for server in (*self.nodes, *self.sentinels):
            server.start()
        eventually(self._is_complete)

    @property
    def _settings(self) -> dict[str, str]:
        return {
            "masterauth": self.nodes[0].password,
            "repl-diskless-sync-delay": "0",
            # An isolated primary accepts nothing that would be lost.
            "min-replicas-to-write": str(self._min_replicas_to_write),
            "min-replicas-max-lag": "2",
        }

    def _replica(self, number: int) -> EmbeddedValkey:
        first = self.nodes[0]
        settings = {"replicaof": f"{HOST} {first.port}", **self._settings}
        folder = self._folder / f"node-{number}"
        return Node(folder, password=first.password, settings=settings)

    def _sentinel(self, number: int) -> EmbeddedSentinel:
        first = self.nodes[0]
        settings: Mapping[str, str] = {
            "sentinel monitor": f"{SERVICE} {HOST} {first.port} 2",
            "sentinel auth-pass": f'{SERVICE} "{first.password}"',
            "sentinel down-after-milliseconds": f"{SERVICE} {DOWN_AFTER_MS}",
            "sentinel failover-timeout": f"{SERVICE} 5000",
        }
        folder = self._folder / f"sentinel-{number}"
        return EmbeddedSentinel(folder, password=first.password, settings=settings)

    def _ask(self, one: EmbeddedSentinel) -> dict[str, Any]:
        with redis.Redis(HOST, one.port, password=one.password) as client:
            return client.sentinel_master(SERVICE)

    def _is_complete(self) -> bool:
        for one in self.sentinels:
            seen = self._ask(one)
            if seen["num-slaves"] != NODES - 1 or seen["num-other-sentinels"] != NODES - 1:
                return False
        with redis.Redis.from_url(self.primary().url) as client:
            return client.info("replication")["connected_slaves"] == NODES - 1
