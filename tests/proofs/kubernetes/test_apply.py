"""The API server accepts every object of the manifests, without a warning and for good."""

import re
from pathlib import Path

import pytest
import yaml

from tests.proofs.kubernetes.api_server import ApiError
from tests.proofs.kubernetes.how_to import commands_of, run
from tests.proofs.kubernetes.installation import (
    APPLY,
    NAMESPACE,
    Installation,
    containers,
    path,
    show,
)
from tests.support.manifests import PLACEHOLDER

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "intruder"},
    "spec": {"containers": [{"name": "main", "image": "example:1"}]},
}


def generations(installation: Installation) -> dict[str, int]:
    """Return how often the wish of each object was changed."""
    return {
        f"{kind}/{found['metadata']['name']}": found["metadata"].get("generation", 0)
        for kind in ("deployments", "statefulsets", "networkpolicies", "poddisruptionbudgets")
        for found in installation.live(kind)
    }


def test_a_second_apply_changes_nothing(installed: Installation) -> None:
    before = generations(installed)
    difference = installed.cluster.run("diff", "--server-side", "-f", "-", stdin=installed.manifest)
    assert difference.returncode == 0, difference.stdout + difference.stderr
    installed.apply()
    assert generations(installed) == before


def test_the_documented_commands_can_be_repeated(installed: Installation, filled_in: Path) -> None:
    section = "Install for development" if installed.overlay == "dev" else "Install on EKS"
    commands = commands_of(section).replace("overlays/prod", f"overlays/{installed.overlay}")
    overlay = filled_in / installed.overlay
    # The commands search for it.
    assert not [file for file in overlay.glob("*.*") if PLACEHOLDER in file.read_text()]
    before = generations(installed)
    run(installed.cluster, commands, filled_in.parents[2])
    assert generations(installed) == before


def test_every_workload_serves_or_has_completed(installed: Installation) -> None:
    installed.until_complete()
    for deployment in installed.live("deployments"):
        status = deployment["status"]
        wanted = deployment["spec"]["replicas"]
        assert status["availableReplicas"] == status["updatedReplicas"] == wanted, show(status)
    for name in installed.names("jobs"):
        assert installed.get("jobs", name)["status"]["succeeded"] == 1, name


def test_the_namespace_refuses_pods_with_more_rights(installed: Installation) -> None:
    with pytest.raises(ApiError) as refused:
        installed.cluster.api.create(path("pods"), POD)
    assert refused.value.status == 403
    assert 'violates PodSecurity "restricted' in refused.value.message


def test_no_pod_was_refused(installed: Installation) -> None:
    """The controllers report pods that the server refuses as events, not as an error of apply."""
    installed.until_complete()
    events = installed.cluster.api.items(f"/api/v1/namespaces/{NAMESPACE}/events")
    assert not [event["message"] for event in events if event["reason"] == "FailedCreate"]


def test_each_container_states_what_it_needs(installed: Installation) -> None:
    """The scheduler has found nodes for all pods by these figures."""
    for pod in installed.live("pods"):
        for container in containers(pod["spec"]):
            named = f"{pod['metadata']['name']}/{container['name']}"
            resources = container["resources"]
            assert {"cpu", "memory"} <= set(resources.get("requests", {})), named
            assert "memory" in resources.get("limits", {}), named
    assert not installed.cluster.api.items(f"/api/v1/namespaces/{NAMESPACE}/resourcequotas")


@pytest.mark.parametrize("installed", ["prod"], indirect=True)
def test_an_overlay_that_was_not_filled_in_is_refused(
    installed: Installation, template: str
) -> None:
    done = installed.cluster.run(*APPLY, "--dry-run=server", stdin=template)
    assert done.returncode == 1
    for store in ("redis", "database", "counters"):
        refused = rf'"to-{store}" is invalid: spec.egress.*cidr: Invalid value: "{PLACEHOLDER}"'
        assert re.search(refused, done.stderr), done.stderr


@pytest.mark.parametrize("kind", ["ScaledObject", "PodMonitor", "PrometheusRule"])
@pytest.mark.parametrize("installed", ["prod"], indirect=True)
def test_an_unknown_field_of_a_custom_resource_is_refused(
    installed: Installation, kind: str
) -> None:
    """The definitions are in the cluster, or a misspelt field would be stored and ignored."""
    objects = [found for found in yaml.safe_load_all(installed.manifest) if found["kind"] == kind]
    objects[0]["spec"]["imagine"] = True
    done = installed.cluster.run(*APPLY, "--dry-run=server", stdin=yaml.safe_dump(objects[0]))
    assert done.returncode == 1
    assert "field not declared in schema" in done.stderr


@pytest.mark.parametrize("installed", ["prod", "prod-hpa"], indirect=True)
def test_each_workload_has_one_autoscaler_at_most(installed: Installation) -> None:
    keda = f"/apis/keda.sh/v1alpha1/namespaces/{NAMESPACE}/scaledobjects"
    scalers = [
        *installed.live("horizontalpodautoscalers"),
        *installed.cluster.api.items(keda),
    ]
    targets = [scaler["spec"]["scaleTargetRef"]["name"] for scaler in scalers]
    assert sorted(targets) == sorted(set(targets))
    assert {"api", "streamer"} <= set(targets) <= set(installed.names("deployments"))
