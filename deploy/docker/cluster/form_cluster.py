"""Form a Redis Cluster, and keep it complete.

    python form_cluster.py [--replicas 1] [--every SECONDS [--state FILE]] HOST:PORT …

With one replica for each primary, the first half of the nodes become the primaries. It can be
repeated at any time, also after it was killed. What it does then:

- The slots of a new cluster are shared out while no node has a key. Later they stay where they are.
- Nodes that do not know each other are introduced, also nodes that came back with other addresses.
- A node without slots becomes a replica of a primary that lacks one. Of those that are left, one of
  two stays a primary, to which slots can be moved, and the other becomes its replica.

It never moves a slot, forgets a node or gives slots that were in use to another node. The login is
the file that SCOREBOARD_REDIS_SECRET names; docs/how-to/cluster.md has the rights that it needs.
"""

import argparse
import json
import os
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import redis

SLOTS = 16_384
LOST = "slots that were in use have no node: see docs/how-to/cluster.md"
POLL_S = 0.2
MEET_AGAIN_S = 5.0
CALL_S = 5.0


class NotFormedError(Exception):
    """The cluster is not complete; the message says why."""


@dataclass
class Known:
    """What one node knows of a node: a line of CLUSTER NODES."""

    id: str
    bus_port: int
    flags: set[str]
    primary: str
    is_linked: bool
    slots: set[int] = field(default_factory=set)


class Node:
    """One server and what it knows of the others."""

    def __init__(self, address: str, login: dict[str, str], tls: dict[str, str]) -> None:
        self.address = address
        self.host, _, port = address.rpartition(":")
        self.port = int(port)
        self.client = redis.Redis(
            self.host,
            self.port,
            username=login.get("username"),
            password=login.get("password"),
            socket_timeout=CALL_S,
            socket_connect_timeout=CALL_S,
            decode_responses=True,
            **({"ssl": True, **tls} if tls else {}),
        )
        self.known: dict[str, Known] = {}
        self.id = ""

    def cluster(self, *words: str | int) -> str:
        """Run a CLUSTER command; return its answer as text."""
        return str(self.client.execute_command("CLUSTER", *words))

    def look(self) -> None:
        """Read what the node knows."""
        self.known = {one.id: one for one in map(read_line, self.cluster("NODES").splitlines())}
        (self.id,) = (one.id for one in self.known.values() if "myself" in one.flags)

    @property
    def own(self) -> Known:
        """What the node says of itself."""
        return self.known[self.id]

    def meet(self, other: "Node") -> None:
        """Introduce another node at the address that its name has now."""
        found = socket.getaddrinfo(other.host, other.port, type=socket.SOCK_STREAM)
        self.cluster("MEET", found[0][4][0], other.port, other.own.bus_port)


def read_line(line: str) -> Known:
    """Parse a line of CLUSTER NODES: id, address, flags, primary, times, epoch, link, slots."""
    node_id, address, flags, primary, _, _, _, link, *ranges = line.split()
    known = Known(
        node_id,
        int(address.partition(",")[0].rpartition("@")[2]),
        set(flags.split(",")),
        "" if primary == "-" else primary,
        link == "connected",
    )
    for one in ranges:
        if not one.startswith("["):  # a slot that is being moved
            first, _, last = one.partition("-")
            known.slots |= set(range(int(first), int(last or first) + 1))
    return known


def say(text: str) -> None:
    """Print what was done."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def share(number: int, primaries: int) -> range:
    """Return the slots of a primary of a new cluster."""
    return range(number * SLOTS // primaries, (number + 1) * SLOTS // primaries)


class Cluster:
    """The nodes; ``replicas`` are those that each primary should have."""

    def __init__(self, nodes: list[Node], replicas: int) -> None:
        if len(nodes) < replicas + 1:
            raise NotFormedError(
                f"{len(nodes)} nodes cannot have {replicas} replicas for each primary"
            )
        self.nodes = nodes
        self.replicas = replicas

    def form(self, within_s: float) -> None:
        """Do what is missing; raise NotFormedError if the cluster is not complete after that."""
        deadline = time.monotonic() + within_s
        met_at = -MEET_AGAIN_S
        is_shared = False
        while True:
            reason = self._look()
            if not reason and not is_shared:
                self._share_slots()
                is_shared = True
                reason = self._look()
            if not reason and time.monotonic() > met_at + MEET_AGAIN_S:
                self._introduce()
                met_at = time.monotonic()
            if not reason:
                reason = self._missing()
            if not reason:
                return
            if time.monotonic() > deadline:
                raise NotFormedError(reason)
            time.sleep(POLL_S)

    def _look(self) -> str:
        """Read what each node knows; return why that is not possible."""
        for node in self.nodes:
            try:
                node.look()
            except (redis.RedisError, OSError) as error:
                return f"{node.address}: {error}"
        return ""

    def _share_slots(self) -> None:
        """Assign the slots to the primaries, unless they have them; also after an interruption."""
        primaries = len(self.nodes) // (self.replicas + 1)
        planned = {
            node.id: set(share(number, primaries))
            for number, node in enumerate(self.nodes[:primaries])
        }
        owned: dict[str, set[int]] = {}
        for node in self.nodes:
            for known in node.known.values():
                owned.setdefault(known.id, set()).update(known.slots)
        if set().union(*owned.values()) == set(range(SLOTS)):
            return
        is_moved = any(slots - planned.get(one, set()) for one, slots in owned.items())
        if is_moved or any(node.client.dbsize() for node in self.nodes):
            raise NotFormedError(LOST)
        for number, node in enumerate(self.nodes, start=1):
            # Nodes with the same epoch would first have to agree; it is set before they meet.
            if len(node.known) == 1 and node.client.cluster("INFO")["cluster_my_epoch"] == "0":
                node.cluster("SET-CONFIG-EPOCH", number)
        for node in self.nodes[:primaries]:
            missing = sorted(planned[node.id] - owned[node.id])
            if missing:
                node.cluster("ADDSLOTS", *missing)
                say(f"{node.address} has slots {missing[0]}-{missing[-1]}")

    def _introduce(self) -> None:
        """Introduce each node that the first one does not reach, and the reverse."""
        first = self.nodes[0]
        for node in self.nodes[1:]:
            for one, other in ((first, node), (node, first)):
                known = one.known.get(other.id)
                if known is None or not known.is_linked or "noaddr" in known.flags:
                    try:
                        one.meet(other)
                    except OSError as error:  # its name has no address yet
                        say(f"{other.address}: {error}")
                    else:
                        say(f"{one.address} meets {other.address}")
                    break

    def _missing(self) -> str:
        """Add replicas where they are missing; return what is not as it should be, or nothing."""
        for node in self.nodes:
            for other in self.nodes:
                if other.id not in node.known or not node.known[other.id].is_linked:
                    return f"{node.address} has no link to {other.address}"
        if sum(len(node.own.slots) for node in self.nodes) < SLOTS:
            return LOST
        if not self._add_replicas():
            return "a primary lacks a replica"
        for node in self.nodes:
            state = node.client.cluster("INFO")["cluster_state"]
            if state != "ok":
                return f"{node.address} has the cluster_state {state}"
            role = node.client.execute_command("ROLE")
            if role[0] == "slave" and role[3] != "connected":
                return f"{node.address} is not connected to its primary"
        return ""

    def _add_replicas(self) -> bool:
        """Make nodes without slots replicas where one is missing; return whether none is then."""
        primaries = [node for node in self.nodes if node.own.slots]
        counts = {node.id: 0 for node in self.nodes}
        for node in self.nodes:
            if node.own.primary in counts:
                counts[node.own.primary] += 1
        spare = [
            node
            for node in self.nodes
            if "master" in node.own.flags and not node.own.slots and not counts[node.id]
        ]
        taken = 0
        for number, node in enumerate(spare):
            lacking = [one for one in primaries if counts[one.id] < self.replicas]
            if not lacking:
                break

            # The next one, so that nodes in turn over three zones have primary and replica in two.
            def order(one: Node, number: int = number) -> tuple[int, int]:
                place = (primaries.index(one) - number - 1) % len(primaries)
                return counts[one.id], place

            self._replicate(node, min(lacking, key=order))
            counts[node.own.primary] += 1
            taken += 1
        # The first of those that are left can get slots: a primary needs its replicas before.
        group = self.replicas + 1
        left = spare[taken:]
        for start in range(0, len(left) - group + 1, group):
            for node in left[start + 1 : start + group]:
                self._replicate(node, left[start])
        return all(counts[node.id] >= self.replicas for node in primaries)

    def _replicate(self, node: Node, primary: Node) -> None:
        node.cluster("REPLICATE", primary.id)
        node.own.primary = primary.id
        say(f"{node.address} is a replica of {primary.address}")


def main(arguments: list[str]) -> int:
    """Form the cluster; return the exit code."""
    parser = argparse.ArgumentParser(description="Form a Redis Cluster.")
    parser.add_argument("--replicas", type=int, default=1, help="replicas of each primary")
    parser.add_argument("--within", type=float, default=120, help="seconds to wait at most")
    parser.add_argument("--every", type=float, help="repeat it after so many seconds")
    parser.add_argument("--state", type=Path, help="a file that exists while it is complete")
    parser.add_argument("--ca", help="file of the authority of the nodes' certificates: use TLS")
    parser.add_argument("nodes", nargs="+", metavar="HOST:PORT")
    given = parser.parse_args(arguments)
    secret = os.environ.get("SCOREBOARD_REDIS_SECRET")
    login = json.loads(Path(secret).read_text()) if secret else {}
    tls = {"ssl_ca_certs": given.ca} if given.ca else {}
    cluster = Cluster([Node(one, login, tls) for one in given.nodes], given.replicas)
    before = None
    while True:
        reason = ""
        try:
            cluster.form(given.within)
        except (NotFormedError, redis.RedisError, OSError) as error:
            reason = str(error)
        if reason != before:
            say(f"not complete: {reason}" if reason else "the cluster is complete")
        before = reason
        if given.state is not None:
            given.state.unlink(missing_ok=True) if reason else given.state.touch()
        if given.every is None:
            return 1 if reason else 0
        time.sleep(given.every)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
