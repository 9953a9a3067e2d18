"""docker-compose.yml on an engine of its own, with stand-ins for the upstream images.

The tests run in this order on one project; after a failure the rest cannot be judged. They prove
the compose file and this project's images. They do not prove the entry points of the official
images, and nothing about Kong: its stand-in only proxies and counts (images/kong.py).
"""

import json
import re
from typing import Any

import pytest

from tests.proofs.compose.conftest import Proof
from tests.proofs.compose.scenario import Scenario, Step, steps
from tests.proofs.compose.stack import START, Fault, check_version
from tests.support.repository import ROOT

PROFILES = ("moto", "observability", "elk", "rotate", "admin")
OBSERVED = ("prometheus", "alertmanager", "redis-exporter", "postgres-exporter")


def extra_steps(proof: Proof) -> list[Step]:
    """Return the steps that need an engine of one's own."""
    engine, scenario, second = proof.engine, proof.scenario, proof.second

    def start_second() -> None:
        second.up(START.replace("compose", "compose --profile moto"))
        answer = second.update(second.token("alice"), "alice", "win:second")
        assert answer.json()["newScore"] == 10, answer.text
        boards = json.loads(second.scoreboard("board", "list", "--json"))
        assert {board["name"] for board in boards} == {"main", "weekly"}
        scenario.everything_counted_once()

    def observe() -> None:
        words = ("--profile", "observability", "up", "--detach", "--no-deps", "--wait", *OBSERVED)
        scenario.stack.compose(*words)

        def targets() -> set[tuple[str, str]]:
            program = "import urllib.request as r; print(r.urlopen('http://prometheus:9090/api/v1/targets').read().decode())"
            text = scenario.stack.compose("exec", "-T", "api", "python", "-c", program)
            active = json.loads(text)["data"]["activeTargets"]
            return {(one["labels"]["job"], one["health"]) for one in active}

        scenario.stack.wait(
            lambda: {health for _, health in targets()} == {"up"},
            "Prometheus cannot read a target",
            "prometheus",
        )

    def stop_issuer() -> None:
        scenario.stack.compose("stop", "oauth")

    def stale_sync() -> None:
        stack = scenario.stack
        stack.wait(
            lambda: stack.containers()["kong-sync"]["State"]["Health"]["Status"] == "unhealthy",
            "kong-sync is healthy without a key set",
            "kong-sync",
        )
        stack.compose("start", "oauth")
        stack.wait_healthy("oauth", "kong-sync")

    def cut_power() -> None:
        engine.cut_power()
        engine.start()
        engine.enter_network()

    def shut_down() -> None:
        engine.shut_down()
        engine.start()
        engine.enter_network()

    def remove_second() -> None:
        second.remove()
        assert not second.left()
        scenario.everything_counted_once()

    return [
        ("the issuer ends", stop_issuer),
        ("a second project starts beside it", start_second),
        ("Prometheus reads every target", observe),
        ("kong-sync is unhealthy without a key set", stale_sync),
        ("a reboot is survived", lambda: scenario.comes_back(shut_down, second)),
        ("a power cut is survived", lambda: scenario.comes_back(cut_power, second)),
        ("the second project is removed", remove_second),
    ]


def test_the_command_is_that_of_the_readme() -> None:
    production = (ROOT / "README.md").read_text().partition("## Production")[2]
    assert re.search(r"```sh\n(.*)\n```", production)[1] == START


def test_the_version_of_compose_is_checked(proof: Proof) -> None:
    assert check_version(proof.scenario.stack.run) == "2.40.3"
    with pytest.raises(Fault, match=r"2\.17\.1 is too old"):
        check_version(lambda *_: "2.17.1\n")


@pytest.mark.parametrize("profile", PROFILES)
def test_each_profile_is_read_by_compose(proof: Proof, profile: str) -> None:
    stack = proof.scenario.stack
    text = stack.compose("--profile", profile, "config", "--format", "json")
    services = json.loads(text)["services"]
    assert any(profile in service.get("profiles", ()) for service in services.values())


def names() -> list[str]:
    """Return the names of all steps."""
    absent: Any = None
    scenario = Scenario(absent, absent, print)
    nothing = Proof(absent, scenario, absent, scenario)
    return [name for name, _ in steps(Scenario(absent, absent, print, extra_steps(nothing)))]


class TestScenario:
    """The steps of scenario.py and those above, in order."""

    failed: str = ""

    @pytest.mark.parametrize("name", names())
    def test_step(self, proof: Proof, name: str) -> None:
        if TestScenario.failed:
            pytest.fail(f"not reached, because this step failed: {TestScenario.failed}")
        proof.scenario.more = extra_steps(proof)
        step = dict(steps(proof.scenario))[name]
        TestScenario.failed = name
        step()
        TestScenario.failed = ""
