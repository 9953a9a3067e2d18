"""deploy/k8s/connections.yml: the policies of each overlay allow exactly these connections."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.manifests import (
    ADMIN_OVERLAYS,
    COMPONENT,
    FILLED_IN,
    MANIFESTS,
    NAMESPACE,
    OVERLAYS,
    Installation,
    copy_manifests,
    render,
)
from tests.support.network_policies import Host, Peer, Pod, Policies
from tests.support.repository import ROOT

LIST: dict[str, Any] = yaml.safe_load((MANIFESTS / "connections.yml").read_text())
PLACES: dict[str, dict[str, Any]] = LIST["places"]
STRANGERS: dict[str, Peer] = {
    "a pod of another namespace": Pod("default", {COMPONENT: "kong"}, address="10.244.9.1"),
    "a pod of ours without a component": Pod(NAMESPACE, {}, address="10.244.9.2"),
    "the metadata of the node": Host("169.254.169.254"),
    "another private address": Host("10.99.0.1"),
}
PORTS = (
    *(22, 53, 80, 443, 5432, 6379, 8000, 8001, 8090, 8100, 8444, 9100, 9101, 9102, 9103, 16379),
)


@pytest.fixture(scope="module")
def overlays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_manifests(tmp_path_factory.mktemp("manifests"))


@pytest.fixture(scope="module", params=(*OVERLAYS, *ADMIN_OVERLAYS))
def overlay(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def found(overlays: Path, overlay: str) -> Installation:
    return Installation(render(overlays / overlay))


def workloads(found: Installation) -> dict[str, Pod]:
    """Return a pod of each component."""
    return {
        container.component: Pod(
            NAMESPACE, {COMPONENT: container.component}, address=f"10.244.0.{number}"
        )
        for number, container in enumerate(found.containers, 1)
    }


def peers(found: Installation, overlay: str) -> dict[str, Peer]:
    """Return what each name of the list stands for in an overlay."""
    known: dict[str, Peer] = {**workloads(found)}
    for name, place in PLACES.items():
        here = place.get(overlay) or place.get(overlay.partition("-")[0])
        if "address" in place:
            known[name] = Host(place["address"])
        elif "namespace" in place:
            known[name] = Pod(place["namespace"], place["labels"], address="10.244.8.1")
        elif here in known:
            known[name] = known.pop(here)
        elif here is not None:
            known[name] = Host(FILLED_IN[here].replace("0/24", "9"))
    return known


def listed(found: Installation, overlay: str) -> Iterator[tuple[str, str, int, str]]:
    """Yield the connections of an overlay."""
    present = workloads(found)
    for one in LIST["connections"]:
        assert one["for"]
        absent = {one["from"], one["to"]} & ({"rotator", "admin"} - present.keys())
        is_here = one.get("only", overlay) in {overlay, overlay.partition("-")[0]}
        if is_here and not absent:
            for protocol in ("TCP", "UDP") if one["to"] == "dns" else ("TCP",):
                yield one["from"], one["to"], one["port"], protocol


def test_the_policies_allow_what_is_listed_and_nothing_else(
    found: Installation, overlay: str
) -> None:
    policies = Policies(found.documents)
    known = peers(found, overlay) | STRANGERS
    allowed = {
        (source, target, port, protocol)
        for source, one in known.items()
        for target, other in known.items()
        if NAMESPACE in {getattr(one, "namespace", ""), getattr(other, "namespace", "")}
        for port in PORTS
        for protocol in ("TCP", "UDP")
        if policies.allow(one, other, port, protocol)
    }
    expected = set(listed(found, overlay))
    # Anybody outside may be a client, or the balancer in front of Kong.
    clients = {one for one in allowed if one[1:] == ("kong", 8000, "TCP")}
    assert {one[0] for one in clients} == {
        name for name, one in known.items() if getattr(one, "namespace", "") != NAMESPACE
    }
    # A policy cannot name hosts, so `https` is every address but those of the node itself.
    outside = {one for one in allowed if one[2:] == (443, "TCP")}
    assert "the metadata of the node" not in {target for _, target, *_ in outside}
    to_https = {one for one in expected if one[1] == "https"}
    assert {source for source, *_ in outside} == {source for source, *_ in to_https}
    rest = allowed - clients - outside
    assert rest == expected - to_https - {("internet", "kong", 8000, "TCP")}


def test_every_pod_is_closed_in_both_directions(found: Installation) -> None:
    policies = Policies(found.documents)
    for pod in workloads(found).values():
        assert "default-deny" in policies.isolating(pod, "ingress")
        assert "default-deny" in policies.isolating(pod, "egress")


def test_every_policy_selects_a_pod(found: Installation) -> None:
    policies = Policies(found.documents)
    used = {
        name
        for pod in workloads(found).values()
        for direction in ("ingress", "egress")
        for name in policies.isolating(pod, direction)
    }
    assert used == {one["metadata"]["name"] for one in found.of("NetworkPolicy")}


def test_only_kong_reaches_the_ports_of_the_services(found: Installation) -> None:
    """Limits count in Kong, and its X-Forwarded-For is trusted."""
    policies = Policies(found.documents)
    pods = workloads(found)
    sources: dict[str, Peer] = {**pods, **STRANGERS, "internet": Host("203.0.113.7")}
    for service, port in (("api", 8000), ("streamer", 8001), ("admin", 8000)):
        if service not in pods:
            continue
        reached = {name for name, one in sources.items()
                   if name != service and policies.allow(one, pods[service], port)}  # fmt: skip
        assert reached == {"kong"}


def test_a_change_of_a_policy_is_noticed(found: Installation, overlay: str) -> None:
    documents = [one for one in found.documents if one["metadata"]["name"] != "api"]
    assert not Policies(documents).allow(workloads(found)["kong"], workloads(found)["api"], 8000), (
        overlay
    )


def test_the_page_has_the_same_connections() -> None:
    page = (ROOT / "docs/how-to/kubernetes.md").read_text()
    section = page.partition("## Who may talk to whom")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([\d, ]+) \|([^|]*)\|", section, re.MULTILINE)
    shown = {
        (source.strip(), target.strip(), int(port), only.strip())
        for sources, target, ports, only in rows
        for source in sources.split(",")
        for port in ports.split(",")
    }
    assert shown == {
        (one["from"], one["to"], one["port"], one.get("only", "")) for one in LIST["connections"]
    }
