"""`python -m tests.bench.publish`: what a notification costs a cluster, by PUBLISH and by SPUBLISH.

Forms a cluster of primaries with a replica each on this machine, and publishes notifications of one
partition, in batches, with some subscribers. The ways take turns. CPU is that of the servers while
they publish, less that of idle servers for as long.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from redis.client import PubSub

from tests.support.eventually import eventually
from tests.support.servers.clusters import PASSWORD, Cluster, Node

CHANNEL = "sb:{main:0}:changes"
WAYS = {"PUBLISH": "SUBSCRIBE", "SPUBLISH": "SSUBSCRIBE"}
BATCH = 500


@contextmanager
def subscribers(nodes: list[Node], way: str, count: int) -> Iterator[None]:
    """Subscribe connections: those of SPUBLISH at the owner, others at the nodes in turn."""
    made: list[PubSub] = []
    try:
        for number in range(count):
            node = nodes[0] if way == "SPUBLISH" else nodes[number % len(nodes)]
            client = redis.Redis(*node.address, password=PASSWORD, protocol=2).pubsub()
            client.execute_command(WAYS[way], CHANNEL)
            client.parse_response()
            made.append(client)
        yield
    finally:
        for client in made:
            client.close()


def cpu_s(node: Node) -> float:
    """Return the CPU time that a server has used."""
    found = node.client.info("cpu")
    return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])


def measure(nodes: list[Node], way: str, count: int) -> tuple[float, list[float]]:
    """Publish; return the seconds that took, and the CPU time of each server."""
    others = nodes[1:] if way == "PUBLISH" else []
    heard = [_heard(node) for node in others]
    before = [cpu_s(node) for node in nodes]
    began_s = time.perf_counter()
    for _ in range(count // BATCH):
        with nodes[0].client.pipeline(transaction=False) as pipe:
            for number in range(BATCH):
                pipe.execute_command(way, CHANNEL, f"1:{number}")
            pipe.execute()
    for node, was in zip(others, heard, strict=True):  # they take what they were sent
        eventually(lambda node=node, was=was: _heard(node) >= was + count // BATCH * BATCH)
    took_s = time.perf_counter() - began_s
    return took_s, [cpu_s(node) - was for node, was in zip(nodes, before, strict=True)]


def _heard(node: Node) -> int:
    """Return how many messages a server has got over the bus of the cluster."""
    return int(node.client.cluster("INFO").get("cluster_stats_messages_publish_received", 0))


def idle_share(nodes: list[Node], seconds: float) -> list[float]:
    """Return the CPU time of each server per second without messages."""
    before = [cpu_s(node) for node in nodes]
    time.sleep(seconds)  # pace: the time that is measured
    return [(cpu_s(node) - was) / seconds for node, was in zip(nodes, before, strict=True)]


def main() -> None:
    """Measure all ways and print their table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--primaries", type=int, default=3)
    parser.add_argument("--subscribers", type=int, nargs="+", default=[0, 6])
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="scoreboard-bench-") as name,
        Cluster(Path(name), primaries=options.primaries) as cluster,
    ):
        owner = cluster.primary_of(CHANNEL)
        (replica,) = cluster.replicas_of(owner)
        nodes = [owner, replica, *(n for n in cluster.nodes if n not in (owner, replica))]
        idle = idle_share(nodes, 5.0)
        print("| subscribers | way | owner µs | its replica µs | each other µs | all servers µs |")
        print("|---|---|---|---|---|---|", flush=True)
        for count in options.subscribers:
            found: dict[str, list[list[float]]] = {way: [] for way in WAYS}
            for _ in range(options.rounds):
                for way in WAYS:
                    with subscribers(nodes, way, count):
                        took_s, used = measure(nodes, way, options.messages)
                    net = [
                        max(0.0, cpu - took_s * share)
                        for cpu, share in zip(used, idle, strict=True)
                    ]
                    found[way].append([one / options.messages * 1e6 for one in net])
            for way, rounds in found.items():
                columns = [statistics.median(column) for column in zip(*rounds, strict=True)]
                sums = sorted(sum(one) for one in rounds)
                others = statistics.mean(columns[2:])
                print(
                    f"| {count} | {way} | {columns[0]:.1f} | {columns[1]:.1f} | {others:.1f} "
                    f"| {statistics.median(sums):.1f} ({sums[0]:.1f} to {sums[-1]:.1f}) |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
