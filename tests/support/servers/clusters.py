"""A real cluster of embedded Valkeys on loopback: primaries, replicas, and ways to break it.

    with Cluster(folder, primaries=3, replicas=1) as cluster:
        cluster.url                                      # REDIS_URL of a service
        lost = cluster.primary_of("sb:{main:0}:board")
        lost.kill()                                      # its replica is promoted
        cluster.wait_until_promoted(instead_of=lost)
        lost.start()                                     # and returns as a replica
        cluster.wait_until_complete()

With ``can_be_severed`` the nodes reach each other, and clients reach them, through a network that
can be severed (``isolate`` and ``rejoin``). With an ``authority``, clients reach the nodes by TLS,
and nodes reach each other without: the embedded Valkey is built without TLS.
"""

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self, cast

import pytest
import redis
import redis.asyncio as aioredis
from redis.asyncio.cluster import ClusterPipeline as AsyncClusterPipeline
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.backoff import NoBackoff
from redis.cluster import ClusterPipeline, RedisCluster
from redis.crc import key_slot
from redis.retry import Retry

from cli.embedded.ports import HOST, find_free_port
from cli.embedded.servers import EmbeddedValkey
from tests.support.eventually import eventually
from tests.support.fakes.tls import Authority, Terminator, terminating
from tests.support.servers.severed_network import SeveredNetwork

SLOTS = 16_384
NODE_TIMEOUT_MS = 1500
PASSWORD = "cluster-of-tests"
CALL_S = 5.0


class Node(EmbeddedValkey):
    """A node. Its processes end with SIGKILL, which also ends a paused one."""

    stop_signal = signal.SIGKILL
    source = HOST
    """The address from which it connects to other nodes."""
    is_paused = False
    replicated: "Node | None" = None
    """The primary of which it was the replica when the cluster was formed."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        super().__init__(folder, password=PASSWORD, settings=settings)
        self.announced_port = self.port
        self.announced_bus_port = 0
        self.id = ""
        self._client: redis.Redis | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that the cluster tells its clients."""
        return HOST, self.announced_port

    @property
    def client(self) -> redis.Redis:
        """A plain client of this node, which follows no redirection."""
        if self._client is None:
            self._client = redis.Redis(
                HOST,
                self.port,
                password=PASSWORD,
                decode_responses=True,
                socket_timeout=CALL_S,
                retry=Retry(NoBackoff(), 1),
            )
        return self._client

    def call(self, *words: object) -> Any:
        """Send one command to this node.

        Raises RedisError.
        """
        return cast("Any", self.client.execute_command(*cast("Any", words)))

    @property
    def answers(self) -> bool:
        """Whether the process runs and is not paused."""
        return self.is_running and not self.is_paused

    @property
    def role(self) -> str:
        """What the node takes itself for: `master` or `slave`."""
        return str(self.call("ROLE")[0])

    def pause(self) -> None:
        """Stop the process with SIGSTOP."""
        self.is_paused = True
        os.kill(self.pid or 0, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process continue."""
        if self.is_paused and self.pid is not None:
            os.kill(self.pid, signal.SIGCONT)
        self.is_paused = False

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        super().kill()
        self.is_paused = False

    def close(self) -> None:
        """Kill the process and close the client."""
        self.kill()
        if self._client is not None:
            self._client.close()


class Cluster:
    """Node n of ``primaries`` begins as the primary of the n-th part of the slots."""

    def __init__(
        self,
        folder: Path,
        *,
        primaries: int = 3,
        replicas: int = 1,
        min_replicas_to_write: int = 0,
        node_timeout_ms: int = NODE_TIMEOUT_MS,
        can_be_severed: bool = False,
        authority: Authority | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """``replicas`` is the number of each primary; ``settings`` are lines of valkey.conf."""
        self.nodes: list[Node] = []
        self._folder = folder
        self._primaries = primaries
        self._replicas = replicas
        self._settings = {
            "cluster-enabled": "yes",
            "cluster-node-timeout": str(node_timeout_ms),
            "cluster-require-full-coverage": "no",
            "cluster-allow-replica-migration": "no",
            "cluster-announce-ip": HOST,
            "masterauth": PASSWORD,
            "repl-diskless-sync-delay": "0",
            "min-replicas-to-write": str(min_replicas_to_write),
            "min-replicas-max-lag": "2",
            **(settings or {}),
        }
        self._network = SeveredNetwork() if can_be_severed else None
        self._authority = authority
        self.terminators: dict[Node, Terminator] = {}
        """What decrypts the connections of clients, for each node."""
        self._stack = ExitStack()
        self._isolated: set[Node] = set()

    def __enter__(self) -> Self:
        """Start and form the cluster; return when every node takes it for complete."""
        with ExitStack() as stack:
            if self._network is not None:
                stack.enter_context(self._network)
            self._stack = stack
            self._start(self._primaries * (1 + self._replicas))
            self._form()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    # Addresses and roles

    @property
    def url(self) -> str:
        """The URL that names the nodes which formed the cluster."""
        formed = self.nodes[: self._primaries * (1 + self._replicas)]
        if self._authority is None:
            hosts = ",".join(f"{HOST}:{node.announced_port}" for node in formed)
            return f"redis+cluster://:{PASSWORD}@{hosts}"
        hosts = ",".join(f"{HOST}:{self.terminators[node].port}" for node in formed)
        query = f"ssl_ca_certs={self._authority.path}"
        return f"rediss+cluster://:{PASSWORD}@{hosts}?{query}"

    def owners(self) -> dict[int, Node]:
        """Return the primary of each slot, as the latest of all nodes' configurations has it."""
        by_id = {node.id: node for node in self.nodes}
        claims: dict[int, tuple[int, str]] = {}
        for node in self._answering():
            for seen in _nodes_of(node):
                for first, last in seen["slots"]:
                    claim = (int(seen["epoch"]), str(seen["node_id"]))
                    for slot in range(first, last + 1):
                        claims[slot] = max(claims.get(slot, claim), claim)
        return {slot: by_id[owner] for slot, (_, owner) in claims.items()}

    def primaries(self) -> list[Node]:
        """Return the owners of slots, in the order of ``nodes``."""
        owners = set(self.owners().values())
        return [node for node in self.nodes if node in owners]

    def primary_of(self, key: str) -> Node:
        """Return the primary of a key's slot."""
        return self.owners()[slot_of(key)]

    def replicas_of(self, primary: Node) -> list[Node]:
        """Return the nodes that call themselves replicas of a primary."""
        found = [node for node in self._answering() if _myself(node)["master_id"] == primary.id]
        return [node for node in found if node is not primary]

    # Faults

    def wait_until_promoted(self, *, instead_of: Node, within_s: float = 30) -> Node:
        """Wait until another node has the slots of a primary that is away; return that node."""
        replicas = [n for n in self._answering() if instead_of.id in self._primaries_seen(n)]

        def promoted() -> Node | None:
            return next((n for n in replicas if n.role == "master"), None)

        found = eventually(promoted, within_s)
        assert found is not None
        return found

    def failover(self, replica: Node) -> None:
        """Let a replica take over from its running primary, and wait until it has."""

        def is_promoted() -> bool:
            if replica.role == "master":
                return True
            if not replica.client.info("replication").get("slave_read_repl_offset"):
                return False
            if _link(replica) == "up":
                replica.call("CLUSTER", "FAILOVER")
            return replica.role == "master"

        # A replica gives up a request after five seconds; until then another has no effect.
        eventually(is_promoted, every_s=0.1)

    def migrate(self, slots: Iterable[int], to: Node) -> None:
        """Move slots at once each (CLUSTER MIGRATESLOTS, Valkey 9) and wait until they are there.

        Raises AssertionError if a migration failed.
        """
        for source, moved in self._by_owner(slots, to).items():
            before = {_field(job, "name") for job in _migrations(source)}
            spans = [bound for span in _spans(moved) for bound in span]
            source.call("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", *spans, "NODE", to.id)
            jobs = eventually(lambda s=source, b=before: _ended(s, b))
            for job in jobs:
                assert _field(job, "state") == "success", str(job)
            self._wait_until_owned(moved, to)

    def migrate_classic(self, slots: Iterable[int], to: Node, *, pause_s: float = 0.0) -> None:
        """Move slots key by key (MIGRATE), each of them half moved for ``pause_s``."""
        for slot in slots:
            with self.half_moved(slot, to):
                time.sleep(pause_s)

    @contextmanager
    def half_moved(self, slot: int, to: Node) -> Iterator[None]:
        """Move a slot key by key; meanwhile every second of its keys is at each node."""
        source = self.owners()[slot]
        if source is to:
            yield
            return
        to.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", to.id)
        keys = source.call("CLUSTER", "GETKEYSINSLOT", slot, 1000)
        _move(source, to, sorted(keys)[::2])
        yield
        while keys := source.call("CLUSTER", "GETKEYSINSLOT", slot, 1000):
            _move(source, to, keys)
        for node in [to, source, *self.primaries()]:
            if node.answers and node.role == "master":
                node.call("CLUSTER", "SETSLOT", slot, "NODE", to.id)
        self._wait_until_owned([slot], to)

    def isolate(self, *nodes: Node) -> None:
        """Sever the network between these nodes and the others; clients still reach all."""
        assert self._network is not None, "the cluster needs can_be_severed=True"
        self._isolated = set(nodes)
        self._network.sever({node.source for node in nodes})

    def rejoin(self) -> None:
        """Heal the network."""
        assert self._network is not None
        self._isolated = set()
        self._network.heal()

    # Repair

    def add_node(self) -> Node:
        """Start another node that joins as a primary without slots."""
        (node,) = self._start(1)
        node.call("CLUSTER", "MEET", HOST, self.nodes[0].announced_port,
                  self.nodes[0].announced_bus_port)  # fmt: skip
        eventually(lambda: self._is_acquainted() and _state(node) == "ok")
        return node

    def add_replica(self, primary: Node) -> Node:
        """Start another node that joins as a replica."""
        node = self.add_node()
        node.call("CLUSTER", "REPLICATE", primary.id)
        eventually(lambda: _link(node) == "up")
        return node

    def wait_until_complete(self, within_s: float = 30) -> None:
        """Wait until all nodes run, agree about every slot, and every replica follows its primary.

        Raises AssertionError with what is missing.
        """

        def is_complete() -> bool:
            missing = self.missing()
            assert not missing, missing
            return True

        eventually(is_complete, within_s, 0.05)

    def missing(self) -> str:
        """Return what the cluster lacks; empty if it is complete."""
        away = [node.port for node in self.nodes if not node.answers]
        if away:
            return f"nodes {away} are away"
        if not self._is_acquainted():
            return "not every node knows all others"
        views = {tuple(_view(node)) for node in self.nodes}
        if len(views) != 1 or sum(last - first + 1 for first, last, _ in views.pop()) != SLOTS:
            return "the nodes do not agree about a primary of every slot"
        told = {one.port for one in self.terminators.values()}
        if told and any(not _ports_told(node) <= told for node in self.nodes):
            return "not every node knows the ports for clients"
        failed = [node.port for node in self.nodes if _state(node) != "ok"]
        behind = [n.port for n in self.nodes if n.role != "master" and _link(n) != "up"]
        return f"failed {failed}, not connected {behind}" if failed or behind else ""

    def repair(self) -> None:
        """Start, resume and connect all nodes; wait until the cluster is complete."""
        if self._isolated:
            self.rejoin()
        for node in self.nodes:
            node.resume()
            node.start()
        self.wait_until_complete()

    def reset(self) -> None:
        """Repair the cluster, delete all keys, and restore the roles and slots of its formation."""
        self.repair()
        for node in self.nodes:
            if node.role == "master":
                node.call("FLUSHALL")
        for number, node in enumerate(self.nodes):
            if number < self._primaries and node.role != "master":
                self.failover(node)
                self.wait_until_complete()
        for number, node in enumerate(self.nodes[: self._primaries]):
            self.migrate(self._slots_of(number), node)
        self.wait_until_complete()

    # Formation

    def _start(self, count: int) -> list[Node]:
        made = [self._make(len(self.nodes) + number) for number in range(count)]
        self.nodes += made
        for node in made:
            self._stack.callback(node.close)
        with ThreadPoolExecutor(len(made)) as pool:
            list(pool.map(Node.start, made))
        for node in made:
            node.id = node.call("CLUSTER", "MYID")
        return made

    def _make(self, number: int) -> Node:
        node = Node(self._folder / f"node-{number}", self._settings)
        bus_port = node.announced_bus_port = find_free_port()
        node.settings["cluster-port"] = str(bus_port)
        if self._network is not None:
            node.source = f"127.0.0.{11 + number}"
            node.announced_port = self._network.forward(node.port, to=node.source)
            node.announced_bus_port = self._network.forward(bus_port, to=node.source)
            node.settings |= {
                "bind-source-addr": node.source,
                "cluster-announce-port": str(node.announced_port),
                "cluster-announce-bus-port": str(node.announced_bus_port),
            }
        if self._authority is not None:
            decrypting = terminating(node.port, self._authority.server(HOST))
            found = self.terminators[node] = self._stack.enter_context(decrypting)
            node.settings["cluster-announce-client-port"] = str(found.port)
        return node

    def _form(self) -> None:
        for number, node in enumerate(self.nodes):
            # Before the nodes meet: equal epochs would be settled one after another.
            node.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < self._primaries:
                slots = self._slots_of(number)
                node.call("CLUSTER", "ADDSLOTSRANGE", slots[0], slots[-1])
        for one, other in itertools.combinations(self.nodes, 2):
            one.call("CLUSTER", "MEET", HOST, other.announced_port, other.announced_bus_port)
        eventually(self._is_acquainted)
        for number, node in enumerate(self.nodes[self._primaries :]):
            node.replicated = self.nodes[number % self._primaries]
            node.call("CLUSTER", "REPLICATE", node.replicated.id)
        self.wait_until_complete()

    def _slots_of(self, number: int) -> range:
        bounds = [SLOTS * part // self._primaries for part in (number, number + 1)]
        return range(*bounds)

    # Views

    def _answering(self) -> list[Node]:
        return [node for node in self.nodes if node.answers]

    def _primaries_seen(self, node: Node) -> set[str]:
        """Return the id of the primary that a node replicates, or replicated at the formation."""
        known = {_myself(node)["master_id"]}
        return known | ({node.replicated.id} if node.replicated is not None else set())

    def _is_acquainted(self) -> bool:
        ids = {node.id for node in self.nodes}
        for node in self._answering():
            seen = _nodes_of(node)
            if {one["node_id"] for one in seen} != ids:
                return False
            if any("handshake" in str(one["flags"]) for one in seen):
                return False
        return True

    def _by_owner(self, slots: Iterable[int], to: Node) -> dict[Node, list[int]]:
        owners = self.owners()
        found: dict[Node, list[int]] = {}
        for slot in slots:
            if owners[slot] is not to:
                found.setdefault(owners[slot], []).append(slot)
        return found

    def _wait_until_owned(self, slots: Sequence[int], owner: Node) -> None:
        def is_known() -> bool:
            return all(
                any(first <= slot <= last and name == owner.id for first, last, name in _view(node))
                for node in self._answering()
                for slot in (slots[0], slots[-1])
            )

        eventually(is_known)


def slot_of(key: str) -> int:
    """Return the slot of a key."""
    return int(key_slot(key.encode()))


def _nodes_of(node: Node) -> list[dict[str, Any]]:
    """Return the nodes that a node knows; ``slots`` are pairs of the first and the last slot."""
    seen: list[dict[str, Any]] = list(node.call("CLUSTER NODES").values())
    for one in seen:
        one["slots"] = [(int(span[0]), int(span[-1])) for span in one["slots"]]
    return seen


def _myself(node: Node) -> dict[str, Any]:
    return next(one for one in _nodes_of(node) if "myself" in one["flags"])


def _view(node: Node) -> list[tuple[int, int, str]]:
    """Return the first slot, last slot and owner of each range that a node knows."""
    return sorted(
        (first, last, str(one["node_id"]))
        for one in _nodes_of(node)
        for first, last in one["slots"]
    )


def _spans(slots: Iterable[int]) -> list[tuple[int, int]]:
    """Return the first and the last slot of each unbroken series."""
    spans: list[tuple[int, int]] = []
    for slot in sorted(slots):
        if spans and spans[-1][1] == slot - 1:
            spans[-1] = (spans[-1][0], slot)
        else:
            spans.append((slot, slot))
    return spans


def _ports_told(node: Node) -> set[int]:
    """Return the ports of primaries and replicas that a node tells its clients."""
    return {int(one[1]) for span in node.call("CLUSTER", "SLOTS") for one in span[2:]}


def _state(node: Node) -> str:
    return str(node.call("CLUSTER INFO")["cluster_state"])


def _link(replica: Node) -> str:
    return str(replica.client.info("replication").get("master_link_status"))


def _move(source: Node, to: Node, keys: Sequence[str]) -> None:
    if keys:
        source.call("MIGRATE", *to.address, "", 0, 5000, "AUTH", PASSWORD, "KEYS", *keys)


def _migrations(node: Node) -> list[Any]:
    return list(node.call("CLUSTER", "GETSLOTMIGRATIONS"))


def _ended(node: Node, before: set[Any]) -> list[Any]:
    """Return the new migrations of a node if all of them have ended."""
    jobs = [job for job in _migrations(node) if _field(job, "name") not in before]
    ends = {"success", "failed", "cancelled"}
    return jobs if all(_field(job, "state") in ends for job in jobs) else []


def _field(job: Any, name: str) -> Any:
    if isinstance(job, dict):
        return cast("dict[str, Any]", job)[name]
    return job[job.index(name) + 1]


@contextmanager
def clients_follow_clusters() -> Iterator[None]:
    """Let ``from_url`` of redis-py's plain clients make clients of the cluster that a URL names."""
    with pytest.MonkeyPatch.context() as patch:
        pairs = (redis.Redis, RedisCluster), (aioredis.Redis, AsyncRedisCluster)
        for plain, following in pairs:
            make = plain.from_url

            def make_either(
                url: str, *, make: Any = make, following: Any = following, **options: Any
            ) -> Any:
                if not url.startswith("redis+cluster:"):
                    return make(url, **options)
                host = url.split(",", maxsplit=1)[0].removeprefix("redis+cluster:")
                return following.from_url(f"redis:{host}", **options)

            patch.setattr(plain, "from_url", make_either)
        for publisher in (RedisCluster, AsyncRedisCluster, ClusterPipeline, AsyncClusterPipeline):
            patch.setattr(publisher, "publish", _publish)
        patch.setattr(AsyncRedisCluster, "pubsub_numsub", _count_subscribers)
        yield


def _publish(client: Any, channel: str, message: str) -> Any:
    """Publish as the scripts do: in the slot of a channel that belongs to a partition."""
    return client.execute_command("SPUBLISH" if "{" in channel else "PUBLISH", channel, message)


async def _count_subscribers(client: Any, channel: str) -> Any:
    """Count the subscribers of a channel that belongs to a partition."""
    await client.initialize()
    owner = client.get_node_from_key(channel)
    return await client.execute_command("PUBSUB SHARDNUMSUB", channel, target_nodes=owner)


OwnCluster = Callable[..., Cluster]


@pytest.fixture(scope="session")
def cluster_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def cluster(cluster_server: Cluster) -> Cluster:
    """Return an empty cluster of three primaries with a replica each, which the session shares."""
    cluster_server.reset()
    return cluster_server


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[OwnCluster]:
    """Return a function that forms a cluster, with the options of Cluster, which a test breaks."""
    with ExitStack() as stack:
        numbers = itertools.count(1)

        def make(**options: Any) -> Cluster:
            folder = tmp_path / f"cluster-{next(numbers)}"
            return stack.enter_context(Cluster(folder, **options))

        yield make
