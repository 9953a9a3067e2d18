"""The evaluator of NetworkPolicies, on the cases that the API of Kubernetes defines."""

from typing import Any

import pytest

from tests.support.network_policies import Host, Pod, Policies, selects

WEB = Pod("shop", {"app": "web"}, {"http": 8080}, address="10.1.0.1")
DB = Pod("shop", {"app": "db"}, {"sql": 5432}, address="10.1.0.2")
PROBE = Pod("other", {"app": "web"}, address="10.1.0.3", namespace_labels={"team": "ops"})
CLIENT = Host("203.0.113.7")
ANYTHING: dict[str, Any] = {}


def policy(selector: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "kind": "NetworkPolicy",
        "metadata": {"name": "one", "namespace": "shop"},
        "spec": {"podSelector": selector, **spec},
    }


def to_db(**rule: Any) -> Policies:
    return Policies([policy({"matchLabels": {"app": "db"}}, ingress=[rule])])


def test_without_a_policy_everything_is_allowed() -> None:
    assert Policies([{"kind": "Service"}]).allow(CLIENT, DB, 1)


def test_a_selected_pod_is_closed_and_others_stay_open() -> None:
    policies = Policies([policy({"matchLabels": {"app": "db"}}, policyTypes=["Ingress"])])
    assert not policies.allow(WEB, DB, 5432)
    assert policies.allow(DB, WEB, 8080)
    assert policies.isolating(DB, "ingress") == ["one"]
    assert policies.isolating(DB, "egress") == []


def test_a_policy_limits_its_own_namespace_only() -> None:
    policies = Policies([policy(ANYTHING, policyTypes=["Ingress", "Egress"])])
    assert not policies.allow(PROBE, DB, 5432)
    assert policies.allow(PROBE, CLIENT, 443)
    assert not policies.allow(DB, CLIENT, 443)


def test_both_directions_are_needed() -> None:
    closed = policy(ANYTHING, policyTypes=["Ingress", "Egress"])
    inwards = policy(ANYTHING, policyTypes=["Ingress"], ingress=[ANYTHING])
    outwards = policy(ANYTHING, policyTypes=["Egress"], egress=[ANYTHING])
    assert not Policies([closed, inwards]).allow(WEB, DB, 5432)
    assert not Policies([closed, outwards]).allow(WEB, DB, 5432)
    assert Policies([closed, inwards, outwards]).allow(WEB, DB, 5432)


def test_egress_is_limited_only_if_the_policy_says_so() -> None:
    assert Policies([policy(ANYTHING)]).allow(WEB, CLIENT, 443)
    assert not Policies([policy(ANYTHING, egress=[{"ports": [{"port": 53}]}])]).allow(
        WEB, CLIENT, 443
    )


@pytest.mark.parametrize(
    ("peer", "allowed"),
    [
        ({"podSelector": {"matchLabels": {"app": "web"}}}, {"web"}),
        ({"podSelector": {}}, {"web"}),
        ({"namespaceSelector": {}}, {"web", "probe"}),
        ({"namespaceSelector": {"matchLabels": {"team": "ops"}}}, {"probe"}),
        ({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "other"}},
          "podSelector": {"matchLabels": {"app": "db"}}}, set()),
        ({"ipBlock": {"cidr": "203.0.113.0/24"}}, {"client"}),
        ({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["203.0.113.0/25"]}}, {"web", "probe"}),
        ({"ipBlock": {"cidr": "::/0"}}, set()),
    ],
)  # fmt: skip
def test_a_peer_is_a_pod_a_namespace_both_or_a_network(
    peer: dict[str, Any], allowed: set[str]
) -> None:
    policies = to_db(**{"from": [peer]})
    sources = {"web": WEB, "probe": PROBE, "client": CLIENT}
    assert {name for name, one in sources.items() if policies.allow(one, DB, 5432)} == allowed


def test_a_rule_without_peers_admits_all() -> None:
    assert to_db(ports=[{"port": 5432}]).allow(CLIENT, DB, 5432)
    assert to_db(**{"from": []}).allow(CLIENT, DB, 1)


@pytest.mark.parametrize(
    ("port", "allowed"),
    [
        ({"port": 5432}, {("TCP", 5432)}),
        ({"port": "sql"}, {("TCP", 5432)}),
        ({"port": "http"}, set()),
        ({"port": 53, "protocol": "UDP"}, {("UDP", 53)}),
        ({"port": 50, "endPort": 5432}, {("TCP", 53), ("TCP", 5432)}),
        ({"protocol": "TCP"}, {("TCP", 53), ("TCP", 5432)}),
    ],
)
def test_a_port_is_a_number_a_name_or_a_range(
    port: dict[str, Any], allowed: set[tuple[str, int]]
) -> None:
    policies = to_db(ports=[port])
    tried = [(protocol, number) for protocol in ("TCP", "UDP") for number in (53, 5432)]
    assert {one for one in tried if policies.allow(WEB, DB, one[1], one[0])} == allowed


def test_selectors_have_four_operators() -> None:
    def expression(operator: str, *values: str) -> dict[str, Any]:
        return {"matchExpressions": [{"key": "app", "operator": operator, "values": values}]}

    assert selects(expression("In", "web", "db"), WEB.labels)
    assert not selects(expression("NotIn", "web"), WEB.labels)
    assert selects(expression("NotIn", "web"), {})
    assert selects(expression("Exists"), WEB.labels)
    assert not selects(expression("DoesNotExist"), WEB.labels)
    with pytest.raises(ValueError, match="Like"):
        selects(expression("Like"), WEB.labels)


@pytest.mark.parametrize(
    "rule",
    [
        {"form": [{"podSelector": {}}]},
        {"from": [{"podselector": {}}]},
        {"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "excepts": []}}]},
        {"ports": [{"ports": 1}]},
    ],
)
def test_a_field_that_is_not_known_is_an_error(rule: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not evaluated"):
        to_db(**rule).allow(CLIENT, DB, 1)
