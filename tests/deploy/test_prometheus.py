"""deploy/prometheus: valid for Prometheus' own tools, and consistent with code and pages.

tests/deploy/test_observability.py runs it on a running system.
"""

import re
from collections import defaultdict

import promql_parser
import pytest
import yaml

from tests.deploy.compose import SERVICES
from tests.support.monitoring import (
    PROMETHEUS,
    RULES,
    alerts,
    documented_metrics,
    rules,
    run,
    selectors_of,
    unknown_metrics,
)

CONFIG = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
ALERTMANAGER = yaml.safe_load((PROMETHEUS / "alertmanager.yml").read_text())
CASES = sorted((PROMETHEUS / "tests").glob("*.yml"))
NAMES = {alert["alert"] for alert in alerts()}
JOBS = {job["job_name"]: job for job in CONFIG["scrape_configs"]}


def test_prometheus_accepts_its_configuration_and_the_rules() -> None:
    output = run("promtool", "check", "config", "prometheus.yml")
    assert f"SUCCESS: {len(RULES)} rule files found" in output
    assert "FAILED" not in run("promtool", "check", "rules", *RULES)


def test_alertmanager_accepts_its_configuration() -> None:
    assert "SUCCESS" in run("amtool", "check-config", "alertmanager.yml")


@pytest.mark.timeout(150)
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should(path) -> None:
    assert "SUCCESS" in run("promtool", "test", "rules", path)


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    fired = defaultdict(set)
    quiet = set()
    for path in CASES:
        for case in yaml.safe_load(path.read_text())["tests"]:
            for check in case["alert_rule_test"]:
                severities = {one["exp_labels"]["severity"] for one in check["exp_alerts"]}
                fired[check["alertname"]] |= severities
                if not severities:
                    quiet.add(check["alertname"])
    expected = defaultdict(set)
    for alert in alerts():
        expected[alert["alert"]].add(alert["labels"]["severity"])
    assert fired == expected
    assert quiet == NAMES


@pytest.mark.parametrize("alert", alerts(), ids=lambda a: f"{a['alert']}-{a['labels']['severity']}")
def test_an_alert_says_what_is_wrong_and_names_its_page(alert) -> None:
    assert alert["labels"]["severity"] in {"page", "ticket"}
    summary, description, page = (
        alert["annotations"][name] for name in ("summary", "description", "runbook_url")
    )
    assert len(alert["annotations"]) == 3
    assert not summary.endswith(".")
    assert description.endswith(".")
    assert page == (
        "{{ $externalLabels.docs }}docs/how-to/runbook.md#" + alert["alert"].lower()
    )  # fmt: skip


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_expressions_name_metrics_and_jobs_that_exist(rule) -> None:
    assert unknown_metrics(rule["expr"]) == set()
    recorded = {one["record"] for one in rules() if "record" in one}
    for selector in selectors_of(rule["expr"]):
        name = str(selector.name)
        assert (
            name in recorded
            if ":" in name
            else re.match(r"(scoreboard|redis|pg|process)_|up$", name)
        )
        for matcher in selector.matchers.matchers:
            if matcher.name == "job":
                assert any(re.fullmatch(matcher.value, job) for job in JOBS)


def test_the_name_of_an_unknown_metric_is_found() -> None:
    assert unknown_metrics("rate(scoreboard_no_such_total[5m]) > 0") == {"scoreboard_no_such_total"}
    assert documented_metrics()
    with pytest.raises(ValueError, match="unclosed"):
        promql_parser.parse("rate(")


def test_the_targets_are_services_with_the_ports_of_the_settings() -> None:
    from scoreboard.runtime.settings import Settings

    fields, defaults = Settings.__struct_fields__, Settings.__struct_defaults__
    values = dict(zip(fields[-len(defaults) :], defaults, strict=True))
    ports = {}
    for name, job in JOBS.items():
        for found in job.get("dns_sd_configs", ()):
            assert found["type"] == "A"
            assert set(found["names"]) <= set(SERVICES)
            ports[name] = found["port"]
    assert ports["scoreboard-api"] == values["api_metrics_port"]
    assert ports["scoreboard-streamer"] == values["ws_metrics_port"]
    assert ports["scoreboard-flusher"] == values["flusher_metrics_port"]
    assert ports["scoreboard-kong-sync"] == 9103
    assert ports["kong"] == 8100


@pytest.mark.parametrize(("severity", "receiver"), [("page", "pages"), ("ticket", "tickets")])
def test_severities_have_receivers(severity: str, receiver: str) -> None:
    labels = [f"severity={severity}", "alertname=ApiDown"]
    options = ["--config.file=alertmanager.yml", f"--verify.receivers={receiver}"]
    run("amtool", "config", "routes", "test", *options, *labels)


def test_inhibition_names_alerts_that_exist() -> None:
    named = set()
    for rule in ALERTMANAGER["inhibit_rules"]:
        assert "environment" in rule["equal"]
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            if matcher.startswith("alertname="):
                named |= set(matcher.split('"')[1].split("|"))
    assert named
    assert named <= NAMES


def labels_of(names: str) -> set[str]:
    """Return the labels of a board that alerts have, from their aggregations."""
    found = set()
    for alert in alerts():
        if alert["alert"] in names.split("|"):
            for listed in re.findall(r"\bby \(([^)]*)\)", alert["expr"]):
                found |= set(listed.split(", ")) & {"board", "part"}
    return found


def test_a_fault_of_one_board_does_not_silence_another() -> None:
    checked = 0
    for rule in ALERTMANAGER["inhibit_rules"]:
        source, target = (
            labels_of(rule[side][0].split('"')[1])
            for side in ("source_matchers", "target_matchers")
        )
        checked += bool(source & target)
        assert source & target <= set(rule["equal"]), rule
    assert checked


def test_the_configuration_has_no_secret_and_limits_each_target() -> None:
    text = (PROMETHEUS / "alertmanager.yml").read_text()
    assert not re.findall(r"(?:password|url|key|token): *(?!/)\S", text)
    assert all(job["sample_limit"] for job in JOBS.values())
