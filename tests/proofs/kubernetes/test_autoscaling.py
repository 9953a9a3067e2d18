"""The autoscalers follow the load that the nodes report, as fast as their policies let them.

The windows of the manifests are minutes. What they hold back is read from the autoscaler's
conditions; then a test shortens the windows and periods and keeps the policies.
"""

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from tests.proofs.kubernetes.api_server import Object
from tests.proofs.kubernetes.installation import Installation, path, show
from tests.support.eventually import eventually

SHORT_PERIOD_S = 6
SHORT_WINDOW_S = 8
IDLE_MILLICORES = 10


def millicores(quantity: str) -> int:
    """Return a quantity of processor time in thousandths of a processor."""
    return int(quantity[:-1]) if quantity.endswith("m") else int(float(quantity) * 1000)


def request_of(deployment: Object) -> int:
    """Return what a pod of a Deployment requests: percent are of this."""
    spec = deployment["spec"]["template"]["spec"]
    return sum(millicores(each["resources"]["requests"]["cpu"]) for each in spec["containers"])


def use_of(status: Object) -> int:
    """Return the processor use in percent of the request, or -1 before it was measured."""
    metrics = status.get("currentMetrics") or [{}]
    return metrics[0].get("resource", {}).get("current", {}).get("averageUtilization", -1)


def reasons(status: Object) -> set[str]:
    """Return the reasons of the conditions."""
    return {each["reason"] for each in status.get("conditions", [])}


def fewest_after(policies: list[Object], replicas: int) -> int:
    """Return how few replicas the policies of a scale-down leave after one period."""
    left = [
        int(replicas * (1 - policy["value"] / 100))
        if policy["type"] == "Percent"
        else replicas - policy["value"]
        for policy in policies
    ]
    return min(left)


def most_after(policies: list[Object], replicas: int) -> int:
    """Return how many replicas the policies of a scale-up allow after one period."""
    return max(
        math.ceil(replicas * (1 + policy["value"] / 100))
        if policy["type"] == "Percent"
        else replicas + policy["value"]
        for policy in policies
    )


class Scaling:
    """An autoscaler, and every number of replicas that it sets."""

    def __init__(self, installation: Installation, name: str) -> None:
        self.installation = installation
        self.name = name
        self.spec = self.get()["spec"]
        (self.percent,) = (
            metric["resource"]["target"]["averageUtilization"]
            for metric in self.spec["metrics"]
            if metric["type"] == "Resource"
        )
        deployment = installation.get("deployments", name)
        self.on_target = request_of(deployment) * self.percent // 100
        """What each pod uses, in millicores, when their number is right."""
        self.steps: list[tuple[float, int]] = []

    def get(self) -> Object:
        """Return the autoscaler."""
        return self.installation.get("horizontalpodautoscalers", self.name)

    def see(self, kind: str, deployment: Object) -> None:
        """Record the new number of replicas."""
        if deployment["metadata"]["name"] == self.name:
            replicas = deployment["spec"]["replicas"]
            if not self.steps or self.steps[-1][1] != replicas:
                self.steps.append((time.monotonic(), replicas))

    def use(self, millicores: int) -> None:
        """Set the CPU that each pod uses."""
        self.installation.cluster.metrics.millicores[self.name] = millicores

    def set_behavior(self, behavior: Object) -> None:
        """Replace the policies."""
        change = {"spec": {"behavior": behavior}}
        self.installation.patch("horizontalpodautoscalers", self.name, change)

    def until(self, check: Callable[[Object], bool], within_s: float = 30) -> None:
        """Wait until the status of the autoscaler fulfils a condition."""

        def holds() -> bool:
            found = self.get()
            assert check(found["status"]), f"{show(found['status'])}, {self.steps}"
            return True

        eventually(holds, within_s=within_s, every_s=0.1)

    def until_replicas(self, wanted: int, within_s: float = 30) -> None:
        """Wait until the autoscaler wants a number of replicas and the Deployment has it."""
        self.until(lambda status: status.get("desiredReplicas") == wanted, within_s)
        self.installation.until_rolled_out("deployments", self.name)


def short(rules: Object) -> Object:
    """Return rules with the same policies, whose window and periods are seconds.

    The window stays longer than a period, or a policy would undo what was just added at once.
    """
    policies = [{**policy, "periodSeconds": SHORT_PERIOD_S} for policy in rules["policies"]]
    window = min(rules["stabilizationWindowSeconds"], SHORT_WINDOW_S)
    return {**rules, "stabilizationWindowSeconds": window, "policies": policies}


@pytest.mark.parametrize("installed", ["prod-hpa"], indirect=True)
def test_the_autoscalers_follow_the_load_at_the_pace_of_their_policies(
    installed: Installation,
) -> None:
    installed.until_complete()
    names = installed.names("horizontalpodautoscalers")
    assert names == ["api", "streamer"]
    with ThreadPoolExecutor(len(names)) as pool:
        # Each waits for minutes that are made seconds; the list raises what a thread raised.
        list(pool.map(follow_the_load, [Scaling(installed, name) for name in names]))


def follow_the_load(scaling: Scaling) -> None:
    """Raise and lower the load of one workload."""
    behavior = scaling.spec["behavior"]
    up, down = behavior["scaleUp"], behavior["scaleDown"]
    least = scaling.spec["minReplicas"]
    scaling.use(IDLE_MILLICORES)
    scaling.until_replicas(least)
    scaling.set_behavior({"scaleUp": short(up), "scaleDown": down})
    with scaling.installation.cluster.api.watch(path("deployments"), scaling.see):
        # Three times the load: the policies allow less in one period.
        high = most_after(up["policies"], least)
        assert least < high < least * 3
        scaling.use(scaling.on_target * 3)
        scaling.until(lambda status: status["desiredReplicas"] == high)
        scaling.use(scaling.on_target)
        scaling.until(
            lambda status: use_of(status) in range(scaling.percent - 2, scaling.percent + 1)
        )
        scaling.until_replicas(high)
        # Without load, the window of the manifest holds the pods.
        scaling.use(IDLE_MILLICORES)
        scaling.until(lambda status: "ScaleDownStabilized" in reasons(status))
        assert down["stabilizationWindowSeconds"] >= 300
        assert scaling.steps[-1][1] == high
        scaling.set_behavior({"scaleUp": up, "scaleDown": short(down)})
        scaling.until_replicas(least, within_s=SHORT_PERIOD_S * high)
    scaling.set_behavior(behavior)
    assert scaling.steps[0][1] == least
    peak = [replicas for _, replicas in scaling.steps].index(high)
    descent = scaling.steps[peak:]
    for (before, replicas), (after, fewer) in pairwise(descent):
        assert fewer >= fewest_after(down["policies"], replicas), scaling.steps
        # The first step waits for the window only; the controller looks every two seconds.
        assert replicas == high or after - before >= SHORT_PERIOD_S - 2, scaling.steps
    assert max(replicas for _, replicas in scaling.steps) == high
