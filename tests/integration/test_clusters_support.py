"""The clusters of the tests: what their faults do to nodes, slots and links."""

import os
from pathlib import Path

import pytest
import redis

from tests.support.eventually import eventually
from tests.support.servers.clusters import Cluster, Node, OwnCluster, slot_of

pytestmark = pytest.mark.slow

KEY = "{main:0}:key"
SLOT = slot_of(KEY)


def other_than(cluster: Cluster, key: str) -> Node:
    """Return a primary that does not have a key."""
    owner = cluster.primary_of(key)
    return next(node for node in cluster.primaries() if node is not owner)


def test_a_killed_primary_is_replaced_and_returns_as_a_replica(cluster: Cluster) -> None:
    lost = cluster.primary_of(KEY)
    lost.call("SET", KEY, "kept")
    assert lost.call("WAIT", 1, 5000) == 1
    lost.kill()

    promoted = cluster.wait_until_promoted(instead_of=lost)
    lost.start()
    cluster.wait_until_complete()

    assert promoted.call("GET", KEY) == "kept"
    assert cluster.primary_of(KEY) is promoted
    assert lost.role == "slave"


def test_a_reset_restores_roles_slots_and_emptiness(cluster: Cluster) -> None:
    cluster.failover(cluster.nodes[4])
    target = other_than(cluster, KEY)
    cluster.migrate([SLOT], target)
    cluster.primary_of(KEY).call("SET", KEY, "left")
    cluster.nodes[5].pause()

    cluster.reset()

    assert [node.role for node in cluster.nodes] == ["master"] * 3 + ["slave"] * 3
    assert cluster.primary_of(KEY) is not target
    assert cluster.primary_of(KEY).call("DBSIZE") == 0


def test_a_migrated_slot_takes_its_keys_along(cluster: Cluster) -> None:
    source, target = cluster.primary_of(KEY), other_than(cluster, KEY)
    source.call("SET", KEY, "moved")

    cluster.migrate([SLOT], target)

    assert target.call("GET", KEY) == "moved"
    with pytest.raises(redis.exceptions.MovedError):
        source.call("GET", KEY)


def test_a_half_moved_slot_has_keys_at_both_nodes(cluster: Cluster) -> None:
    source, target = cluster.primary_of(KEY), other_than(cluster, KEY)
    source.call("SET", "{main:0}:a", "1")
    source.call("SET", "{main:0}:b", "2")
    both = "return redis.call('MGET', KEYS[1], KEYS[2])"

    with cluster.half_moved(SLOT, target):
        assert target.call("DBSIZE") == source.call("DBSIZE") == 1
        with pytest.raises(redis.exceptions.TryAgainError):
            source.call("EVAL", both, 2, "{main:0}:a", "{main:0}:b")

    assert target.call("EVAL", both, 2, "{main:0}:a", "{main:0}:b") == ["1", "2"]
    assert cluster.primary_of(KEY) is target


def test_an_isolated_primary_goes_on_and_what_it_accepts_is_lost(own_cluster: OwnCluster) -> None:
    cluster = own_cluster(can_be_severed=True)
    old = cluster.primary_of(KEY)
    cluster.isolate(old)
    old.call("SET", KEY, "lost")  # its clients still reach it

    promoted = cluster.wait_until_promoted(instead_of=old)
    assert promoted.call("GET", KEY) is None
    assert old.role == "master"
    eventually(lambda: old.call("CLUSTER INFO")["cluster_state"] == "fail")

    cluster.rejoin()
    cluster.wait_until_complete()
    assert old.role == "slave"
    assert cluster.primary_of(KEY) is promoted


def test_a_node_that_joins_gets_slots(own_cluster: OwnCluster) -> None:
    cluster = own_cluster(primaries=3, replicas=0)
    cluster.primary_of(KEY).call("SET", KEY, "moved")

    joined = cluster.add_node()
    cluster.migrate([SLOT], joined)

    assert cluster.primary_of(KEY) is joined
    assert joined.call("GET", KEY) == "moved"


def test_no_process_is_left_after_a_failure(tmp_path: Path) -> None:
    pids: list[int] = []

    def fail() -> None:
        with Cluster(tmp_path, replicas=0) as cluster:
            pids.extend(node.pid or 0 for node in cluster.nodes)
            cluster.nodes[0].pause()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
