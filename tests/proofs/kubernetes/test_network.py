"""The NetworkPolicies that the API server stores allow the listed connections and no other.

The control plane stores policies; the network of a cluster enforces them. So they are read back and
evaluated, for the pods of every workload, also for those that run only at times.
"""

from ipaddress import ip_network
from typing import Any

import yaml

from tests.proofs.kubernetes.api_server import Object
from tests.proofs.kubernetes.installation import NAMESPACE, Installation
from tests.support.manifests import COMPONENT, MANIFESTS
from tests.support.network_policies import Host, Peer, Pod, Policies

LIST = yaml.safe_load((MANIFESTS / "connections.yml").read_text())
WORKLOADS = ("deployments", "statefulsets", "jobs", "cronjobs")
OTHER_PORTS = (22, 80, 443, 6443, 10250)
METADATA = Host("169.254.169.254")
"""Where a node tells its credentials; no pod may ask."""
Connection = tuple[str, str, int]


def template_of(workload: Object) -> Object:
    spec = workload["spec"]
    return (spec["jobTemplate"]["spec"] if "jobTemplate" in spec else spec)["template"]


def pods_of(installation: Installation) -> dict[str, Pod]:
    """Return a pod of each workload."""
    found = {}
    for kind in WORKLOADS:
        for workload in installation.live(kind):
            template = template_of(workload)
            labels = template["metadata"]["labels"]
            ports = {
                port["name"]: port["containerPort"]
                for container in [
                    *template["spec"].get("initContainers", []),
                    *template["spec"]["containers"],
                ]
                for port in container.get("ports", [])
            }
            found[f"{kind}/{workload['metadata']['name']}"] = Pod(NAMESPACE, labels, ports)
    return found


def place(description: Any, settings: dict[str, str]) -> Peer:
    if "namespace" in description:
        return Pod(description["namespace"], description["labels"])
    if "address" in description:
        return Host(description["address"])
    return Host(str(next(ip_network(settings[description["prod"]]).hosts())))


def ends_of(installation: Installation) -> tuple[dict[str, Pod], dict[str, Peer], dict[str, str]]:
    """Return the workloads, the places outside, and the workloads that the list calls otherwise."""
    workloads = pods_of(installation)
    configuration = next(
        found["data"] for found in installation.live("configmaps") if "REDIS_URL" in found["data"]
    )
    overlay = installation.overlay.partition("-")[0]
    outside: dict[str, Peer] = {"metadata": METADATA}
    renamed = {}
    for name, description in LIST["places"].items():
        if overlay == "dev" and "dev" in description:
            renamed[name] = description.get(installation.overlay, description["dev"])
        elif overlay == "dev" or description.keys() != {"dev"}:
            outside[name] = place(description, configuration)
    return workloads, outside, renamed


def listed(installation: Installation) -> set[Connection]:
    """Return the connections of the list that this overlay has, between its workloads."""
    workloads, outside, renamed = ends_of(installation)
    overlay = installation.overlay
    names = {name: [name] for name in outside}
    for name, pod in workloads.items():
        names.setdefault(pod.labels[COMPONENT], []).append(name)
    return {
        (source, target, one["port"])
        for one in LIST["connections"]
        if one.get("only", overlay) in {overlay, overlay.partition("-")[0]}
        for source in names.get(renamed.get(one["from"], one["from"]), ())
        for target in names.get(renamed.get(one["to"], one["to"]), ())
    }


def allowed(installation: Installation) -> set[Connection]:
    """Return the connections that the policies in the API server allow."""
    workloads, outside, _ = ends_of(installation)
    stored = installation.live("networkpolicies")
    policies = Policies([{**policy, "kind": "NetworkPolicy"} for policy in stored])
    ports = {connection["port"] for connection in LIST["connections"]} | {*OTHER_PORTS}
    for pod in workloads.values():
        ports |= {*pod.ports.values()}
    found = set()
    for source, one in {**workloads, **outside}.items():
        for target, other in {**workloads, **outside}.items():
            if source in outside and target in outside:
                continue
            for port in ports:
                if policies.allow(one, other, port):
                    # A policy names no host: HTTPS is allowed to every address but the node's.
                    https = isinstance(other, Host) and other != METADATA and port == 443
                    # Every place outside of the namespace may be a client of Kong.
                    client = source in outside and (target, port) == ("deployments/kong", 8000)
                    found.add(
                        ("internet" if client else source, "https" if https else target, port)
                    )
    return found


def test_the_policies_allow_the_listed_connections_and_no_other(installed: Installation) -> None:
    expected, found = listed(installed), allowed(installed)
    assert not expected - found, "not allowed"
    assert not found - expected, "not listed"


def test_every_pod_is_isolated_in_both_directions(installed: Installation) -> None:
    stored = installed.live("networkpolicies")
    policies = Policies([{**policy, "kind": "NetworkPolicy"} for policy in stored])
    stranger = Pod(NAMESPACE, {"app": "stranger"})
    for pod in [*pods_of(installed).values(), stranger]:
        assert policies.isolating(pod, "ingress"), pod
        assert policies.isolating(pod, "egress"), pod


def test_names_are_asked_over_udp_as_well(installed: Installation) -> None:
    stored = installed.live("networkpolicies")
    policies = Policies([{**policy, "kind": "NetworkPolicy"} for policy in stored])
    workloads, outside, _ = ends_of(installed)
    asking = {source for source, target, _ in listed(installed) if target == "dns"}
    assert asking
    for name, pod in workloads.items():
        assert policies.allow(pod, outside["dns"], 53, "UDP") is (name in asking), name
