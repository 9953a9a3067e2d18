"""docker-compose.yml with deploy/docker/cluster.yml: a project whose board is in a cluster.

The tests run in this order on one project, as those of test_compose.py do.
"""

import json
import re
from typing import Any

import pytest

from scoreboard.model import Partition
from scoreboard.store.cluster import slot_of
from tests.proofs.compose.conftest import Proof
from tests.proofs.compose.scenario import Scenario, Step
from tests.proofs.compose.stack import START
from tests.support.repository import ROOT

NODES = ("valkey", *(f"valkey-{number}" for number in range(2, 7)))
SLOTS = """
import json, os, sys
sys.path.insert(0, "/usr/local/share/scoreboard")
import form_cluster
login = json.load(open(os.environ["SCOREBOARD_REDIS_SECRET"]))
for name in sys.argv[1:]:
    node = form_cluster.Node(f"{name}:6379", login, {})
    try:
        node.look()
    except Exception:
        continue
    print(json.dumps([name, sorted(node.own.slots), node.client.execute_command("ROLE")[0]]))
"""
"""Prints each node that answers, with its slots and its role."""

TARGETS = "http://prometheus:9090/api/v1/targets"


def primaries(scenario: Scenario) -> dict[str, set[int]]:
    """Return the slots of each primary, as it says itself."""
    text = scenario.stack.compose("exec", "-T", "cluster", "python", "-c", SLOTS, *NODES)
    found = [json.loads(line) for line in text.splitlines()]
    return {name: set(slots) for name, slots, role in found if role == "master" and slots}


def owner(scenario: Scenario) -> str:
    """Return the node that has the board `main`; empty without one."""
    slot = slot_of(Partition("main"))
    return next((name for name, slots in primaries(scenario).items() if slot in slots), "")


def cluster_steps(proof: Proof) -> list[Step]:
    """Return the steps by name."""
    engine, scenario = proof.engine, proof.clustered
    stack = scenario.stack

    def start() -> None:
        assert not stack.left(), "the project exists already"
        files = "compose -f docker-compose.yml -f deploy/docker/cluster.yml"
        stack.up(START.replace("compose", files, 1))
        assert len(primaries(scenario)) == 3

    def lose_a_primary() -> None:
        with scenario.load.running():
            scenario.is_served()
            lost = owner(scenario)
            stack.compose("kill", lost)  # Docker does not restart it
            stack.wait(
                lambda: owner(scenario) not in {"", lost},
                f"no replica of {lost} was promoted",
                "cluster",
            )
            scenario.say(f"  {lost} is replaced by {owner(scenario)}")
            stack.compose("start", lost)
            stack.wait_healthy(*stack.long_running())
            scenario.is_served()
        scenario.everything_counted_once()

    def restart_each_node() -> None:
        with scenario.load.running():
            for name in NODES:
                scenario.say(f"  {name}")
                stack.compose("restart", "--no-deps", name)
                stack.wait_healthy(name)
                wait_until_replicated()
            scenario.is_served()
        scenario.everything_counted_once()

    def wait_until_replicated() -> None:
        program = "/usr/local/share/scoreboard/form_cluster.py"
        addresses = [f"{name}:6379" for name in NODES]
        stack.compose("exec", "-T", "cluster", "python", program, *addresses)

    def rotate() -> None:
        with scenario.load.running():
            stack.compose("run", "--rm", "-T", "rotate", "redis", within_s=600)
            scenario.is_served()
        with scenario.load.running():
            stack.compose("restart", "--no-deps", *NODES, "api", "flusher", "streamer")
            stack.wait_healthy(*stack.long_running())
            scenario.is_served()
        scenario.everything_counted_once()

    def observe() -> None:
        observers = ("prometheus", "redis-exporter")
        up = ("up", "--detach", "--no-deps", "--wait", *observers)
        stack.compose("--profile", "observability", *up)

        def nodes() -> dict[str, str]:
            program = f"import urllib.request as r; print(r.urlopen({TARGETS!r}).read().decode())"
            text = stack.compose("exec", "-T", "api", "python", "-c", program)
            active = json.loads(text)["data"]["activeTargets"]
            return {
                one["labels"]["instance"]: one["health"]
                for one in active
                if one["labels"]["job"] == "redis"
            }

        stack.wait(
            lambda: len(nodes()) == len(NODES) and set(nodes().values()) == {"up"},
            "Prometheus cannot read each node",
            "prometheus",
        )

    def cut_power() -> None:
        engine.cut_power()
        engine.start()
        engine.enter_network()

    return [
        ("start from nothing", start),
        ("an update reaches PostgreSQL and a viewer", scenario.one_update),
        ("a lost primary is replaced", lose_a_primary),
        ("each node is restarted", restart_each_node),
        ("rotate the secrets of every node", rotate),
        ("Prometheus reads each node", observe),
        ("a power cut is survived", lambda: scenario.comes_back(cut_power)),
        ("a second up changes nothing", scenario.up_again),
        ("down keeps the data", scenario.down_and_up),
        ("every action is counted once", scenario.everything_counted_once),
        ("down -v leaves nothing", scenario.remove),
    ]


def names() -> list[str]:
    """Return the names of all steps."""
    absent: Any = None
    scenario = Scenario(absent, absent, print)
    return [name for name, _ in cluster_steps(Proof(absent, scenario, absent, scenario))]


def test_the_command_is_that_of_the_guide() -> None:
    page = (ROOT / "docs/how-to/cluster.md").read_text()
    (command,) = re.findall(r"^docker compose .*up --build --wait$", page, re.MULTILINE)
    assert command == START.replace(
        "compose", "compose -f docker-compose.yml -f deploy/docker/cluster.yml", 1
    )


class TestScenario:
    """The steps, in order."""

    failed: str = ""

    @pytest.mark.parametrize("name", names())
    def test_step(self, proof: Proof, name: str) -> None:
        if TestScenario.failed:
            pytest.fail(f"not reached, because this step failed: {TestScenario.failed}")
        TestScenario.failed = name
        dict(cluster_steps(proof))[name]()
        TestScenario.failed = ""
