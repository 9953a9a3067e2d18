"""Evaluate NetworkPolicies: which connections they allow, as the API of Kubernetes defines it.

A pod that no policy selects for a direction is open in it. Otherwise a connection needs one rule of
one of these policies, and it needs both directions: egress of its source and ingress of its target.
A field that is not known here is an error, so that no rule is ignored.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, Final, Literal

Entity = Mapping[str, Any]
Direction = Literal["ingress", "egress"]

NAMESPACE_LABEL: Final = "kubernetes.io/metadata.name"
"""The label that Kubernetes gives each namespace."""


@dataclass(frozen=True)
class Pod:
    """One end of a connection inside the cluster."""

    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    ports: Mapping[str, int] = field(default_factory=dict[str, int])
    """The numbers of its named ports."""
    address: str = ""
    namespace_labels: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Host:
    """One end of a connection outside of the cluster."""

    address: str


Peer = Pod | Host


class Policies:
    """The NetworkPolicies of a cluster."""

    def __init__(self, documents: Iterable[Entity]) -> None:
        """Take the NetworkPolicies from among other objects."""
        self._policies = [one for one in documents if one["kind"] == "NetworkPolicy"]
        for policy in self._policies:
            _require_known(policy["spec"], "podSelector", "policyTypes", "ingress", "egress")

    def allow(self, source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
        """Return whether the source can connect to a port of the target."""
        attempt = _Attempt(source, target, port, protocol)
        return self._permits("egress", attempt) and self._permits("ingress", attempt)

    def isolating(self, pod: Pod, direction: Direction) -> list[str]:
        """Return the names of the policies that limit a pod in a direction."""
        return [one["metadata"]["name"] for one in self._selecting(pod, direction)]

    def _selecting(self, pod: Pod, direction: Direction) -> list[Entity]:
        return [
            policy
            for policy in self._policies
            if policy["metadata"]["namespace"] == pod.namespace
            and direction in _directions(policy["spec"])
            and selects(policy["spec"]["podSelector"], pod.labels)
        ]

    def _permits(self, direction: Direction, attempt: "_Attempt") -> bool:
        if direction == "egress":
            subject, other, key = attempt.source, attempt.target, "to"
        else:
            subject, other, key = attempt.target, attempt.source, "from"
        if isinstance(subject, Host):
            return True
        policies = self._selecting(subject, direction)
        return not policies or any(
            _admits(rule, key, policy["metadata"]["namespace"], other) and attempt.fits(rule)
            for policy in policies
            for rule in policy["spec"].get(direction) or ()
        )


@dataclass(frozen=True)
class _Attempt:
    source: Peer
    target: Peer
    port: int
    protocol: str

    def fits(self, rule: Entity) -> bool:
        """Return whether a rule has the port."""
        ports: Sequence[Entity] = rule.get("ports") or ()
        return not ports or any(self._is_port(one) for one in ports)

    def _is_port(self, one: Entity) -> bool:
        _require_known(one, "port", "protocol", "endPort")
        if one.get("protocol", "TCP") != self.protocol:
            return False
        first = one.get("port")
        if first is None:
            return True
        if isinstance(first, str):
            return isinstance(self.target, Pod) and self.target.ports.get(first) == self.port
        return first <= self.port <= one.get("endPort", first)


def _directions(spec: Entity) -> set[str]:
    default = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]
    return {kind.lower() for kind in spec.get("policyTypes") or default}


def _admits(rule: Entity, key: str, namespace: str, other: Peer) -> bool:
    _require_known(rule, key, "ports")
    peers: Sequence[Entity] = rule.get(key) or ()
    return not peers or any(_is_peer(one, namespace, other) for one in peers)


def _is_peer(peer: Entity, namespace: str, other: Peer) -> bool:
    _require_known(peer, "podSelector", "namespaceSelector", "ipBlock")
    if "ipBlock" in peer:
        return _is_in_block(peer["ipBlock"], other.address)
    if isinstance(other, Host):
        return False
    if "namespaceSelector" in peer:
        labels = {NAMESPACE_LABEL: other.namespace, **other.namespace_labels}
        is_namespace = selects(peer["namespaceSelector"], labels)
    else:
        is_namespace = other.namespace == namespace
    return is_namespace and selects(peer.get("podSelector", {}), other.labels)


def _is_in_block(block: Entity, address: str) -> bool:
    _require_known(block, "cidr", "except")
    if not address:
        return False
    found = ip_address(address)
    return found in ip_network(block["cidr"]) and not any(
        found in ip_network(excepted) for excepted in block.get("except") or ()
    )


def selects(selector: Entity, labels: Mapping[str, str]) -> bool:
    """Return whether a label selector selects labels; an empty one selects all."""
    _require_known(selector, "matchLabels", "matchExpressions")
    wanted: Mapping[str, str] = selector.get("matchLabels") or {}
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        _is_met(one, labels) for one in selector.get("matchExpressions") or ()
    )


def _is_met(expression: Entity, labels: Mapping[str, str]) -> bool:
    key = expression["key"]
    values = expression.get("values") or []
    match expression["operator"]:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
        case operator:
            raise ValueError(f"{operator} is not an operator of selectors")


def _require_known(found: Entity, *known: str) -> None:
    unknown = found.keys() - set(known)
    if unknown:
        raise ValueError(f"{min(unknown)} is not evaluated here")
