"""Rules and dashboards on a running system, with real Prometheus, Alertmanager and exporters."""

import json
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest
import websockets
from websockets.sync.client import connect

from cli.embedded.ports import find_free_port
from scoreboard.security.tokens import ADMIN
from tests.deploy.test_grafana import DOCUMENTS
from tests.support.clients.load import Load
from tests.support.eventually import eventually
from tests.support.monitoring import (
    NOT_EXPORTED,
    alerts,
    base_name,
    operands_of,
    program,
    rules,
    selectors_of,
)
from tests.support.servers.monitored import DOCS, Monitored
from tests.support.servers.system import System

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

WITHOUT_DATA = {
    "ALERTS": "has series only while an alert is pending or fires",
    "scoreboard_worker_up": "a service with one worker does not have it",
    "redis_master_link_up": "only a replica has it, and this system has none",
    "redis_cluster_slots_ok": "only a node of a cluster has it",
}
"""What returns nothing on a healthy system of this kind, and why."""


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    for name in ("prometheus", "prometheus-alertmanager"):
        program(name)
    folder = tmp_path_factory.mktemp("observability")
    with ExitStack() as stack:
        secret = folder / "redis"
        system = System(
            folder / "system",
            environments={
                "streamer": {"SCOREBOARD_SECRETS": "file", "SCOREBOARD_REDIS_SECRET": str(secret)}
            },
            has_acl_file=True,
            api_metrics_port=find_free_port(),
            admin_api="true",
        )
        secret.write_text(json.dumps({"username": "default", "password": "administrator"}))
        stack.callback(system.stop)
        system.start()
        cause_refusals(system)
        found = Monitored(system, folder / "monitoring")
        stack.callback(found.stop)
        found.start()
        load = stack.enter_context(Load(system).running())
        eventually(lambda: sum(load.updates.values()) > 20, within_s=20)
        yield found


def cause_refusals(system: System) -> None:
    """Cause what a healthy system counts rarely: a refused token, a 503, a viewer who leaves."""
    assert update(system, {"Authorization": "Bearer none"}) == 401
    assert administer(system) == 200
    with connect(
        system.ws, subprotocols=[websockets.Subprotocol("scoreboard.v1")], proxy=None
    ) as viewer:
        viewer.recv(timeout=10)
    system.valkey.stop()
    assert update(system, system.game_server()) == 503
    assert administer(system) == 503
    system.valkey.start()
    system.wait_until_ready()


def update(system: System, headers: dict[str, str]) -> int:
    """Send an update; return the status."""
    body = {"userId": "user0", "actionId": "win:once", "points": 1}
    url = f"{system.api}/api/scores/update"
    return httpx.post(url, json=body, headers=headers, trust_env=False, timeout=10).status_code


def administer(system: System) -> int:
    """Read the status as an administrator; return that of the response."""
    headers = {"Authorization": f"Bearer {system.token('carla', ADMIN)}"}
    url = f"{system.api}/api/admin/status"
    return httpx.get(url, headers=headers, trust_env=False, timeout=20).status_code


def expressions() -> dict[str, str]:
    """Return every expression that must have data, with the rule or panel that needs it."""
    found = {}
    for rule in rules():
        for text in operands_of(rule["expr"]):
            found[text] = rule.get("alert") or rule["record"]
    for name, document in DOCUMENTS.items():
        for panel in document["panels"]:
            for target in panel["targets"]:
                text = target["expr"].replace("$__rate_interval", "30s")
                found |= dict.fromkeys(operands_of(text), f"{name}: {panel['title']}")
    return found


def is_exported(text: str) -> bool:
    """Return whether a service exports what an expression names, also by recording rules."""
    recorded = {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}
    for selector in selectors_of(text):
        name = str(selector.name)
        if name in recorded and not is_exported(recorded[name]):
            return False
        if {name, base_name(name)} & NOT_EXPORTED:
            return False
    return True


def exception_for(text: str) -> str:
    """Return the name in WITHOUT_DATA of what an expression selects, or an empty string."""
    for selector in selectors_of(text):
        labels = [f'{one.name}="{one.value}"' for one in selector.matchers.matchers]
        for name in (str(selector.name), f"{selector.name}{{{','.join(labels)}}}"):
            if name in WITHOUT_DATA:
                return name
    return ""


def test_every_expression_of_rules_and_dashboards_returns_data(monitored: Monitored) -> None:
    wanted = {
        text: place
        for text, place in expressions().items()
        if is_exported(text) and not exception_for(text)
    }
    assert len(wanted) > 100

    def missing() -> dict[str, str]:
        return {text: place for text, place in wanted.items() if not monitored.query(text)}

    def nothing_is_missing() -> bool:
        found = missing()
        assert not found, json.dumps(found, indent=1)
        return True

    eventually(nothing_is_missing, within_s=25, every_s=1)
    assert {exception_for(text) for text in expressions()} - {""} == set(WITHOUT_DATA)


def test_rules_are_evaluated_without_an_error(monitored: Monitored) -> None:
    assert monitored.query("sum(prometheus_rule_evaluation_failures_total)")[0]["value"][1] == "0"


def test_no_cause_pages_on_a_healthy_system(monitored: Monitored) -> None:
    # A machine that is busy with other tests may be too slow for the objectives.
    causes = {
        alert["alert"] for alert in alerts()
        if alert["labels"]["severity"] == "page" and not alert["alert"].endswith("BudgetBurn")
    }  # fmt: skip
    assert monitored.firing() & causes == set()
    sent = {one["labels"]["alertname"] for one in monitored.endpoint.notifications}
    assert sent & causes == set()


def test_a_killed_flusher_is_notified_and_resolved(monitored: Monitored) -> None:
    def sent(status: str) -> list:
        return [
            one for one in monitored.endpoint.notifications
            if (one["status"], one["labels"]["alertname"]) == (status, "FlusherDown")
        ]  # fmt: skip

    flusher = monitored.system.services["flusher"]
    flusher.kill()
    (alert, *_) = eventually(lambda: sent("firing"), within_s=20)

    assert alert["labels"] == {
        "alertname": "FlusherDown",
        "environment": "development",
        "job": "scoreboard-flusher",
        "severity": "page",
    }
    assert alert["annotations"]["runbook_url"] == f"{DOCS}docs/how-to/runbook.md#flusherdown"
    # The target itself is missing too, which is no notification of its own.
    eventually(lambda: "MetricsMissing" in monitored.silenced(), within_s=20)

    flusher.start()
    eventually(lambda: sent("resolved"), within_s=30)
