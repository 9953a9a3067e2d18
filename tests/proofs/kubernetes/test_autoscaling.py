"""The autoscalers follow the load that the nodes report, as fast as their policies let them.

The windows of the manifests are minutes. What they hold back is read from the autoscaler's
conditions; then a test shortens the windows and periods and keeps the policies.
"""

import math
import time
from collections.abc import Callable
from itertools import pairwise

import pytest

from tests.proofs.kubernetes.api_server import Object
from tests.proofs.kubernetes.installation import Installation, path, show
from tests.proofs.kubernetes.overlays import HPA
from tests.support.eventually import eventually

SHORT_PERIOD_S = 8
SHORT_WINDOW_S = 4
IDLE_MILLICORES = 10


def millicores(quantity: str) -> int:
    """Return a quantity of processor time in thousandths of a processor."""
    return int(quantity[:-1]) if quantity.endswith("m") else int(float(quantity) * 1000)


def request_of(deployment: Object) -> int:
    """Return what a pod of a Deployment requests: percent are of this."""
    spec = deployment["spec"]["template"]["spec"]
    return sum(millicores(each["resources"]["requests"]["cpu"]) for each in spec["containers"])


def condition(autoscaler: Object, kind: str) -> Object:
    found = {each["type"]: each for each in autoscaler["status"].get("conditions", [])}
    return found.get(kind, {})


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


@pytest.mark.parametrize("name", ["api", "streamer"])
@pytest.mark.parametrize("installed", [HPA], indirect=True)
def test_an_autoscaler_follows_the_load_at_the_pace_of_its_policies(
    installed: Installation, name: str
) -> None:
    installed.until_complete()
    metrics = installed.cluster.metrics
    autoscaler = installed.get("horizontalpodautoscalers", name)
    spec = autoscaler["spec"]
    behavior = spec["behavior"]
    percent = next(
        metric["resource"]["target"]["averageUtilization"]
        for metric in spec["metrics"]
        if metric["type"] == "Resource"
    )
    on_target = request_of(installed.get("deployments", name)) * percent // 100
    steps: list[tuple[float, int]] = []

    def see(kind: str, deployment: Object) -> None:
        if deployment["metadata"]["name"] == name:
            replicas = deployment["spec"]["replicas"]
            if not steps or steps[-1][1] != replicas:
                steps.append((time.monotonic(), replicas))

    def until(check: Callable[[Object], bool], within_s: float) -> None:
        def holds() -> bool:
            found = installed.get("horizontalpodautoscalers", name)
            assert check(found), show(found["status"])
            return True

        eventually(holds, within_s=within_s, every_s=0.2)

    def measured(low: int, high: int) -> Callable[[Object], bool]:
        def check(found: Object) -> bool:
            current = found["status"].get("currentMetrics") or [{}]
            value = current[0].get("resource", {}).get("current", {}).get("averageUtilization", -1)
            return low <= value <= high

        return check

    least = spec["minReplicas"]
    metrics.millicores[name] = IDLE_MILLICORES
    until(lambda found: found["status"].get("desiredReplicas") == least, within_s=30)
    installed.until_rolled_out(f"deployment/{name}")
    with installed.cluster.api.watch(path("deployments"), see):
        # Three times the load: the policies allow less in the first period.
        metrics.millicores[name] = on_target * 3
        allowed = most_after(behavior["scaleUp"]["policies"], least)
        until(lambda found: found["status"]["desiredReplicas"] > least, within_s=20)
        metrics.millicores[name] = on_target
        until(measured(percent - 2, percent), within_s=20)
        high = installed.get("deployments", name)["spec"]["replicas"]
        assert high == min(allowed, least * 3), steps
        # Without load, the window holds the pods.
        metrics.millicores[name] = IDLE_MILLICORES
        until(
            lambda found: condition(found, "AbleToScale").get("reason") == "ScaleDownStabilized",
            within_s=20,
        )
        assert behavior["scaleDown"]["stabilizationWindowSeconds"] >= 300
        assert installed.get("deployments", name)["spec"]["replicas"] == high
        # The same policies in shorter periods.
        down = {
            "stabilizationWindowSeconds": SHORT_WINDOW_S,
            "policies": [
                {**policy, "periodSeconds": SHORT_PERIOD_S}
                for policy in behavior["scaleDown"]["policies"]
            ],
        }
        change = {"spec": {"behavior": {"scaleDown": down}}}
        installed.patch("horizontalpodautoscalers", name, change)
        until(lambda found: found["status"]["desiredReplicas"] == least, within_s=90)
    peak = steps.index(next(step for step in steps if step[1] == high))
    for (before, replicas), (after, fewer) in pairwise(steps[peak:]):
        assert fewer >= fewest_after(behavior["scaleDown"]["policies"], replicas), steps
        if replicas != high:
            assert after - before >= SHORT_PERIOD_S - 3, steps
    assert steps[-1][1] == least
    restored = {"spec": {"behavior": {"scaleDown": behavior["scaleDown"]}}}
    installed.patch("horizontalpodautoscalers", name, restored)
    installed.until_rolled_out(f"deployment/{name}")
