"""Rollouts, faulty images and drained nodes leave enough pods ready, at every moment."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.proofs.kubernetes.api_server import ApiError, Object
from tests.proofs.kubernetes.installation import NAMESPACE, SERVICES, Installation, path, show
from tests.proofs.kubernetes.kubelet import MISSING, UNHEALTHY, ZONES
from tests.proofs.kubernetes.pod_counts import is_ready, ready_pods

in_production = pytest.mark.parametrize("installed", ["prod-hpa"], indirect=True)
in_both = pytest.mark.parametrize("installed", ["dev", "prod-hpa"], indirect=True)
"""Without KEDA itself, the overlay prod has one pod of what KEDA scales."""
in_a_cluster = pytest.mark.parametrize("installed", ["dev-cluster"], indirect=True)
WORKLOADS = [f"deployment/{name}" for name in SERVICES]
ZONE = "topology.kubernetes.io/zone"
VALKEY = "valkey-cluster"
DEADLINE_S = 4
DRAIN = ("--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s")


def replicas_of(installation: Installation) -> dict[str, int]:
    """Return how many pods of each service a rollout keeps ready: all."""
    return {name: installation.get("deployments", name)["spec"]["replicas"] for name in SERVICES}


def services(installation: Installation) -> list[Object]:
    """Return the Deployments of the services."""
    return [installation.get("deployments", name) for name in SERVICES]


def until_all_are_rolled_out(installation: Installation) -> None:
    for name in SERVICES:
        installation.until_rolled_out("deployments", name)
    installation.until_budgets_are_met()


def nodes_of(installation: Installation, zone: str) -> list[str]:
    nodes = installation.cluster.api.items("/api/v1/nodes", labelSelector=f"{ZONE}={zone}")
    return [node["metadata"]["name"] for node in nodes]


def zones_of(installation: Installation, pods: list[Object]) -> list[str]:
    """Return the zone of each pod."""
    zones = {name: zone for zone in ZONES for name in nodes_of(installation, zone)}
    return [zones[pod["spec"]["nodeName"]] for pod in pods]


@contextmanager
def drained(installation: Installation, nodes: list[str]) -> Iterator[None]:
    """Drain nodes as an administrator does, and open them again."""
    try:
        installation.cluster.kubectl("drain", *nodes, *DRAIN)
        yield
    finally:
        installation.cluster.kubectl("uncordon", *nodes)


@in_both
def test_every_deployment_has_a_budget_that_lets_one_pod_go(installed: Installation) -> None:
    installed.until_complete()
    budgets = {found["metadata"]["name"]: found for found in installed.live("poddisruptionbudgets")}
    for deployment in services(installed):
        status = budgets[deployment["metadata"]["name"]]["status"]
        replicas = deployment["spec"]["replicas"]
        assert status["expectedPods"] == status["currentHealthy"] == replicas, show(status)
        assert status["disruptionsAllowed"] == 1, show(status)


@in_production
def test_a_second_pod_is_not_evicted_before_the_first_is_replaced(
    installed: Installation,
) -> None:
    installed.until_complete()
    for budget in installed.live("poddisruptionbudgets"):
        pods = installed.pods(budget["metadata"]["name"])
        answers = []
        for pod in pods:
            name = pod["metadata"]["name"]
            eviction = {
                "apiVersion": "policy/v1",
                "kind": "Eviction",
                "metadata": {"name": name, "namespace": NAMESPACE},
            }
            try:
                installed.cluster.api.create(f"{path('pods', name)}/eviction", eviction)
            except ApiError as refused:
                answers.append(refused.status)
            else:
                answers.append(201)
        assert answers == [201, *[429] * (len(pods) - 1)], budget["metadata"]["name"]
    until_all_are_rolled_out(installed)


@in_both
def test_a_rollout_keeps_all_replicas_ready(installed: Installation) -> None:
    installed.until_complete()
    floors = replicas_of(installed)
    with ready_pods(installed.cluster, NAMESPACE) as counts:
        installed.cluster.kubectl("rollout", "restart", *WORKLOADS, "-n", NAMESPACE)
        until_all_are_rolled_out(installed)
    lowest = counts.lowest()
    assert all(lowest[name] >= least for name, least in floors.items()), (lowest, floors)


@in_production
@pytest.mark.parametrize("tag", [MISSING, UNHEALTHY])
def test_a_faulty_image_replaces_no_pod_and_can_be_taken_back(
    installed: Installation, tag: str
) -> None:
    installed.until_complete()
    floors = replicas_of(installed)
    before = {name: installed.get("deployments", name)["spec"] for name in SERVICES}
    for name in SERVICES:
        # The default is ten minutes.
        short = {"spec": {"progressDeadlineSeconds": DEADLINE_S}}
        installed.patch("deployments", name, short)
    faulty = f"registry.example/scoreboard:{tag}"
    with ready_pods(installed.cluster, NAMESPACE) as counts:
        installed.apply(installed.deployments(*SERVICES, image=faulty))
        for name in SERVICES:
            done = installed.cluster.run(
                *("rollout", "status", f"deployment/{name}", "--timeout=60s", "-n", NAMESPACE)
            )
            assert done.returncode == 1, name
            assert "exceeded its progress deadline" in done.stderr, done.stderr
        installed.apply(installed.deployments(*SERVICES))
        until_all_are_rolled_out(installed)
    lowest = counts.lowest()
    assert all(lowest[name] >= least for name, least in floors.items()), (lowest, floors)
    for component, images in counts.images.items():
        assert faulty not in images, component
    for name, spec in before.items():
        deadline = {"spec": {"progressDeadlineSeconds": spec["progressDeadlineSeconds"]}}
        installed.patch("deployments", name, deadline)
        assert installed.get("deployments", name)["spec"] == spec


@in_production
def test_pods_are_spread_over_zones_and_nodes(installed: Installation) -> None:
    for deployment in services(installed):
        name = deployment["metadata"]["name"]
        pods = installed.pods(name)
        zones = zones_of(installed, pods)
        counts = [zones.count(zone) for zone in ZONES]
        assert max(counts) - min(counts) <= 1, (name, counts)
        nodes = [pod["spec"]["nodeName"] for pod in pods]
        assert len(set(nodes)) == len(nodes), (name, nodes)


@in_production
def test_all_nodes_are_drained_in_turn_within_the_budgets(installed: Installation) -> None:
    """This is how the nodes of a cluster are replaced by those of a new version."""
    installed.until_complete()
    floors = installed.floors()
    with ready_pods(installed.cluster, NAMESPACE) as counts:
        for node in installed.cluster.nodes.names:
            with drained(installed, [node]):
                left = [
                    pod for pod in installed.live("pods") if pod["spec"].get("nodeName") == node
                ]
                assert not left
                until_all_are_rolled_out(installed)
    lowest = counts.lowest()
    assert all(lowest[name] >= least for name, least in floors.items()), (lowest, floors)


@in_production
def test_the_services_live_without_a_zone(installed: Installation) -> None:
    """A spread that must hold would leave the pods of the drained zone without a node."""
    installed.until_complete()
    floors = installed.floors()
    lost = nodes_of(installed, ZONES[0])
    with ready_pods(installed.cluster, NAMESPACE) as counts, drained(installed, lost):
        until_all_are_rolled_out(installed)
        for deployment in services(installed):
            pods = installed.pods(deployment["metadata"]["name"])
            assert sum(map(is_ready, pods)) == deployment["spec"]["replicas"]
            assert ZONES[0] not in zones_of(installed, pods)
    lowest = counts.lowest()
    assert all(lowest[name] >= least for name, least in floors.items()), (lowest, floors)


@in_a_cluster
def test_each_node_of_the_cluster_has_a_node_of_kubernetes(installed: Installation) -> None:
    installed.until_complete()
    pods = installed.pods(VALKEY)
    assert len({pod["spec"]["nodeName"] for pod in pods}) == len(pods) == 6
    assert sorted(zones_of(installed, pods)) == sorted([*ZONES, *ZONES])


@in_a_cluster
def test_an_update_replaces_one_node_of_the_cluster_at_a_time(installed: Installation) -> None:
    installed.until_complete()
    with ready_pods(installed.cluster, NAMESPACE) as counts:
        installed.cluster.kubectl("rollout", "restart", f"statefulset/{VALKEY}", "-n", NAMESPACE)
        installed.until_rolled_out("statefulsets", VALKEY)
    assert counts.lowest()[VALKEY] == 5


@in_a_cluster
def test_one_node_of_the_cluster_is_evicted_at_a_time(installed: Installation) -> None:
    installed.until_complete()
    answers = []
    for pod in installed.pods(VALKEY):
        metadata = {"name": pod["metadata"]["name"], "namespace": NAMESPACE}
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
        try:
            installed.cluster.api.create(f"{path('pods', metadata['name'])}/eviction", eviction)
        except ApiError as refused:
            answers.append(refused.status)
        else:
            answers.append(201)
    assert answers == [201, 429, 429, 429, 429, 429]
    installed.until_complete()
