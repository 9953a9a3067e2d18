"""deploy/grafana: the dashboards are current, valid, and name what exists. Grafana is not run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deploy.compose import environment
from tests.support.monitoring import NAMES_OF_KONG, alerts, rules, selectors_of, unknown_metrics
from tests.support.repository import ROOT
from tests.support.servers.rights import load_script

GRAFANA = ROOT / "deploy/grafana"
FILES = sorted((GRAFANA / "dashboards").glob("*.json"))
DOCUMENTS = {path.stem: json.loads(path.read_text()) for path in FILES}
PANELS = [
    pytest.param(panel, id=f"{name}-{panel['id']}")
    for name, document in DOCUMENTS.items()
    for panel in document["panels"]
]
every_dashboard = pytest.mark.parametrize("name", DOCUMENTS)
every_panel = pytest.mark.parametrize("panel", PANELS)


def build(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "deploy/grafana/build.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_dashboards_and_their_page_are_up_to_date() -> None:
    done = build("--check")
    assert done.returncode == 0, f"run: python deploy/grafana/build.py\n{done.stderr}"
    assert len(FILES) == 6


def test_an_outdated_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script(GRAFANA / "build.py")
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "DASHBOARDS", tmp_path / "dashboards")
    monkeypatch.setattr(script, "PAGE", tmp_path / "page.md")
    script.DASHBOARDS.mkdir()
    assert script.main([]) == 0
    assert script.main(["--check"]) == 0
    (script.DASHBOARDS / "old.json").touch()
    assert script.main(["--check"]) == 1
    assert script.main([]) == 0
    (script.DASHBOARDS / "redis.json").write_text("{}")
    assert script.main(["--check"]) == 1


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the program that decodes dashboards; skip if that is impossible, in CI fail."""
    program = tmp_path_factory.mktemp("grafana") / "strict"
    problem = "Go 1.24 or later is missing"
    if shutil.which("go"):
        done = subprocess.run(
            ["go", "build", "-mod=readonly", "-o", program, "."],
            cwd=ROOT / "tests/deploy/grafana-strict",
            env=os.environ | {"GOTOOLCHAIN": "local", "CGO_ENABLED": "0"},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        problem = done.stderr if done.returncode else ""
    if problem:
        assert os.environ.get("CI") != "true", problem
        pytest.skip(f"NOT RUN: Grafana's own types decode the dashboards ({problem})")
    return program


@pytest.mark.timeout(320)
def test_grafanas_own_types_decode_the_dashboards_strictly(strict: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text(FILES[0].read_text().replace('"gridPos"', '"grid"'))

    done = subprocess.run([strict, *FILES], capture_output=True, text=True, check=False)
    refused = subprocess.run([strict, wrong], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout
    assert done.stdout.count(": ok\n") == len(FILES)
    assert refused.returncode == 1
    assert "grid" in refused.stdout


@every_dashboard
def test_a_dashboard_has_its_address_and_links_to_the_others(name: str) -> None:
    document = DOCUMENTS[name]
    assert document["uid"] == f"scoreboard-{name}"
    assert document["links"][0]["tags"] == document["tags"] == ["scoreboard"]
    assert {one["name"] for one in document["templating"]["list"]} == {"datasource", "docs"}


@every_dashboard
def test_panels_have_unique_ids_and_do_not_overlap(name: str) -> None:
    panels = DOCUMENTS[name]["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) <= 12
    covered: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & covered, panel["title"]
        covered |= cells


@every_panel
def test_a_panel_is_a_question_with_an_explanation(panel) -> None:
    assert panel["title"].endswith("?")
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]


@every_panel
def test_links_lead_to_alerts_that_exist(panel) -> None:
    names = {alert["alert"] for alert in alerts()}
    for link in panel["links"]:
        name = link["title"].removeprefix("Runbook: ")
        if panel["type"] == "table":
            assert link["url"] == "${docs}docs/how-to/runbook.md"
            continue
        assert name in names
        assert link["url"] == "${docs}docs/how-to/runbook.md#" + name.lower()


@every_panel
def test_expressions_name_metrics_that_exist(panel) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for target in panel["targets"]:
        text = target["expr"].replace("$__rate_interval", "1m")
        assert "$" not in text
        assert not re.search(r"\[\d+[smh]\]", target["expr"].replace("[1h]", "")), "a fixed range"
        assert unknown_metrics(text) == set()
        for selector in selectors_of(text):
            name = str(selector.name)
            if ":" in name:
                assert name in recorded
            elif name.startswith("kong_"):
                assert name in NAMES_OF_KONG
            else:
                assert re.match(r"(scoreboard|redis|pg)_|(up|ALERTS)$", name)


def test_the_data_source_is_prometheus_of_the_compose_file() -> None:
    text = (GRAFANA / "provisioning/datasources/prometheus.yml").read_text()
    (source,) = yaml.safe_load(text)["datasources"]
    assert source["url"] == "http://prometheus:9090"
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    text = (GRAFANA / "provisioning/dashboards/scoreboard.yml").read_text()
    (provider,) = yaml.safe_load(text)["providers"]
    home = environment("grafana")["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/overview.json"
